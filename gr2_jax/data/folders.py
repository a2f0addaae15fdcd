"""A user's folder of JSONL files: which of them are there."""

import pathlib

from gr2_jax.data.schema import SPLITS, DataError


def find_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """`NAME.jsonl.gz` or `NAME.jsonl` of the folder, None when it has neither; raises DataError when it has both."""
  found = [path for suffix in (".jsonl.gz", ".jsonl") if (path := folder / f"{name}{suffix}").is_file()]
  if len(found) == 2:
    raise DataError(f"{found[0]}: {found[1].name} lies beside it; keep one of the two")
  return found[0] if found else None


def find_slates(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Split -> `slates_SPLIT.jsonl[.gz]`, for those that are there; a single `slates.jsonl[.gz]` is the split `train`.

  Raises DataError for a single file beside those of splits.
  """
  of_split = {split: path for split in SPLITS if (path := find_file(folder, f"slates_{split}"))}
  single = find_file(folder, "slates")
  if single is None:
    return of_split
  if of_split:
    raise DataError(f"{single}: {next(iter(of_split.values())).name} lies beside it; keep the files of the splits, or the single one")
  return {"train": single}
