"""Stage `data`: whatever the source, the run's own copy of items, interactions and slates in the common form."""

import pathlib
import shutil

import numpy as np

from gr2_jax.data.jsonl import BadLines, read_interactions, read_items, read_slates, write_interactions, write_items, write_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import SPLITS, DataError
from gr2_jax.files import write_json


def run(config, run, progress, stop):
  """Writes `items.jsonl.gz` and `interactions.jsonl.gz`; `slates_SPLIT.jsonl.gz` where the source has slates; a market's utilities."""
  source = config.data.source
  try:
    catalogue, histories, slates = _load(config, run, progress)
    _check_slates(config, slates)
  except DataError:  # a stage that refused its input leaves no folder, so that it counts as not begun
    shutil.rmtree(run.path("data", "tfds"), ignore_errors=True)
    raise
  write_items(run.path("data", "items.jsonl.gz"), catalogue.items)
  write_interactions(run.path("data", "interactions.jsonl.gz"), histories)
  for split, records in slates.items():
    write_slates(run.path("data", f"slates_{split}.jsonl.gz"), records)
  counts = {
    "source": source,
    "items": len(catalogue),
    "users": len(histories),
    "interactions": sum(len(h.items) for h in histories),
    "slates": {split: len(records) for split, records in slates.items()},
  }
  write_json(run.path("data", "counts.json"), counts)
  progress.console.print(
    f"  {counts['items']:,} items, {counts['users']:,} users, {counts['interactions']:,} interactions", highlight=False
  )


def _load(config, run, progress):
  """(catalogue, histories, split name -> slates) of the config's source."""
  source = config.data.source
  if source == "synthetic":
    return _synthetic(config, run)
  if source.startswith("tfds:"):
    return _from_tfds(source.removeprefix("tfds:"), config, run)
  report = BadLines()
  try:
    return _from_files(pathlib.Path(source), config.data.on_error, report)
  finally:  # the list is wanted most when too little is left
    _write_report(report, run.path("data", "bad_lines.jsonl"), progress)


def _check_slates(config, slates):
  """What would otherwise come out after mid-training: slates that are missing, or longer than answers can name."""
  if config.slates.source != "log":
    return
  for split in SPLITS:
    if not slates.get(split):
      raise DataError(
        f"config.slates.source: 'log' needs slates_{split}.jsonl[.gz] with at least one usable line in config.data.source; add it, or "
        "build slates with --config.slates.source=ctr or =beam"
      )
  longest, named = max(len(s.candidates) for records in slates.values() for s in records), config.tokenize.num_candidates
  if longest > named:
    raise DataError(f"candidates: a slate has {longest}, but only {named} have names; raise --config.tokenize.num_candidates")


def _synthetic(config, run):
  market = make_market(MarketConfig(**config.data.market), config.data.market_seed)
  for split, utilities in market.utilities.items():
    np.save(run.path("data", f"utilities_{split}.npy"), utilities)
  return market.catalogue, market.histories, market.slates


def _from_tfds(name, config, run):
  """A source that TFDS prepares; see `gr2_jax.data.sources`."""
  from gr2_jax.data.sources import load_source

  if config.data.on_error == "skip":
    raise DataError("config.data.on_error: 'skip' is for a folder of JSONL files; give that folder as config.data.source")
  manual_dir = pathlib.Path(config.data.manual_dir) if config.data.manual_dir else None
  return load_source(name, manual_dir=manual_dir, own_dir=run.path("data", "tfds"))


def _from_files(folder, on_error, report):
  options = {"on_error": on_error, "report": report}
  catalogue = read_items(_find(folder, "items"), **options)
  histories = read_interactions(_find(folder, "interactions"), catalogue, **options)
  paths = {split: _find(folder, f"slates_{split}", required=False) for split in SPLITS}
  slates = {split: read_slates(path, catalogue, **options) for split, path in paths.items() if path}
  return catalogue, histories, slates


def _write_report(report, path, progress):
  path.unlink(missing_ok=True)  # of an attempt that failed
  if len(report):
    report.write(path)
    progress.note(f"data: {len(report):,} bad lines left out, listed in {path}")


def _find(folder, stem, required=True):
  for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz"):
    if (folder / name).exists():
      return folder / name
  if required:
    raise DataError(f"config.data.source: {folder} has no {stem}.jsonl or {stem}.jsonl.gz; give a folder that has, or 'synthetic'")
  return None
