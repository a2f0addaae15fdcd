"""The sources of records that TFDS prepares, by the name that follows `tfds:` in `config.data.source`."""

import dataclasses
import functools
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Mapping

import tensorflow_datasets as tfds

from gr2_jax.data.amazon_reviews import AmazonReviews2014, raw_files
from gr2_jax.data.folders import find_file, find_slates
from gr2_jax.data.prepared import prepare, prepared_catalogue, prepared_histories, prepared_slates
from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.slate_logs import InteractionLog, SlateLog

BuilderFn = Callable[..., tfds.core.DatasetBuilder]  # takes `data_dir`, None for TFDS's own folder


@dataclasses.dataclass(frozen=True)
class Source:
  """The builders of one source; `slates` is None where it never has any.

  `raw_files`: the names of what it takes from `manual_dir` where it lies there. `own_files`: it reads the user's own log in `manual_dir`.
  """

  items: BuilderFn
  histories: BuilderFn
  slates: BuilderFn | None = None
  raw_files: tuple[str, ...] = ()
  own_files: bool = False


def _amazon(name: str) -> Source:
  return Source(
    items=functools.partial(AmazonReviews2014, config=f"{name}_items"),
    histories=functools.partial(AmazonReviews2014, config=name),
    raw_files=tuple(raw_files(name).values()),
  )


SOURCES: Mapping[str, Source] = {
  "beauty": _amazon("beauty"),
  "sports": _amazon("sports"),
  "toys": _amazon("toys"),
  "own_log": Source(
    items=functools.partial(InteractionLog, config="items"),
    histories=functools.partial(InteractionLog, config="interactions"),
    slates=functools.partial(SlateLog, config="slates"),
    own_files=True,
  ),
}


def load_source(
  name: str, *, manual_dir: pathlib.Path | None, own_dir: pathlib.Path
) -> tuple[Catalogue, tuple[History, ...] | None, dict[str, tuple[Slate, ...]]]:
  """(catalogue, histories, split name -> slates) of a source, prepared where they are not yet; histories None for own slates alone.

  Public data is prepared once per machine, in TFDS's own folder; files that lie in `manual_dir` are not downloaded, and prepared once for
  each content. The user's own files are read from `manual_dir` and prepared in `own_dir`, which is emptied first: TFDS never looks again
  at the files of what it has prepared, so a folder that another log was prepared in would give that log. Floats are kept to 32 bits.

  Raises DataError for a name that is not in `SOURCES`, for a folder without the files, and for a file that cannot be used.
  """
  source = SOURCES.get(name)
  if source is None:
    known = ", ".join(f"tfds:{known}" for known in SOURCES)
    raise DataError(f"config.data.source: 'tfds:{name}' is not known; choose one of {known}")
  if source.own_files:
    if manual_dir is None or not manual_dir.is_dir() or not any(manual_dir.iterdir()):
      raise DataError(f"config.data.manual_dir: {str(manual_dir or '')!r} is no folder with files; give that of the JSONL files")
    shutil.rmtree(own_dir, ignore_errors=True)
    data_dir: pathlib.Path | None = own_dir
  else:
    data_dir, manual_dir = _public_dirs(source.raw_files, manual_dir)

  def prepare_with(builder_fn: BuilderFn) -> tfds.core.DatasetBuilder:
    builder = builder_fn(data_dir=data_dir)
    prepare(builder, manual_dir)
    return builder

  catalogue = prepared_catalogue(prepare_with(source.items))
  if source.slates is None or manual_dir is None or not find_slates(manual_dir):
    return catalogue, prepared_histories(prepare_with(source.histories)), {}
  slates = prepared_slates(prepare_with(source.slates))
  if find_file(manual_dir, "interactions") is None:
    return catalogue, None, slates
  return catalogue, prepared_histories(prepare_with(source.histories)), slates


def _public_dirs(names: tuple[str, ...], manual_dir: pathlib.Path | None) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """(where public data is prepared, None for TFDS's own folder; where raw files are looked for).

  Raw files that somebody put down are prepared in a folder named by their content.
  """
  shared = pathlib.Path(tfds.core.constants.DATA_DIR)
  folder = manual_dir or shared / "downloads" / "manual"  # where TFDS looks by itself
  content = hashlib.sha256()
  found = [name for name in names if (folder / name).is_file()]
  for name in found:
    with (folder / name).open("rb") as file:
      content.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
  if found:
    return shared / "by_content" / content.hexdigest()[:16], folder
  if manual_dir is not None:
    raise DataError(
      f"config.data.manual_dir: {str(manual_dir)!r} has no {' or '.join(names)}; give the folder that has them, or none to download them"
    )
  return None, None
