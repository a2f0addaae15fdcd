"""Stage `data`: whatever the source, the run's own copy of items, interactions and slates in the common form."""

import pathlib

import numpy as np

from gr2_jax.data.jsonl import BadLines, read_interactions, read_items, read_slates, write_interactions, write_items, write_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import SPLITS, DataError
from gr2_jax.files import write_json


def run(config, run, progress, stop):
  """Writes `items.jsonl.gz` and `interactions.jsonl.gz`; `slates_SPLIT.jsonl.gz` where the source has slates; a market's utilities."""
  source = config.data.source
  if source == "synthetic":
    catalogue, histories, slates = _synthetic(config, run)
  elif source.startswith("tfds:"):
    catalogue, histories, slates = _from_tfds(source.removeprefix("tfds:"), config.data.manual_dir)
  else:
    report = BadLines()
    try:
      catalogue, histories, slates = _from_files(pathlib.Path(source), config.data.on_error, report)
    finally:  # the list is wanted most when too little is left
      _write_report(report, run.path("data", "bad_lines.jsonl"), progress)
  _check_slates(config, slates)
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


def _from_tfds(name, manual_dir):
  """The public Amazon reviews of 2014; prepared once per machine, in TFDS's own folder."""
  from gr2_jax.data import prepared
  from gr2_jax.data.amazon_reviews import AmazonReviews2014

  if name not in AmazonReviews2014.builder_configs or f"{name}_items" not in AmazonReviews2014.builder_configs:
    raise DataError(f"config.data.source: 'tfds:{name}' is not known; choose tfds:beauty, tfds:sports or tfds:toys")
  items, histories = AmazonReviews2014(config=f"{name}_items"), AmazonReviews2014(config=name)
  for builder in (items, histories):
    prepared.prepare(builder, manual_dir or None)
  return prepared.prepared_catalogue(items), prepared.prepared_histories(histories), {}


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
