"""Stage `data`: whatever the source, the run's own copy of items, interactions and slates in the common form."""

import pathlib

import numpy as np

from experiments.artifacts import SPLITS
from experiments.rundir import write_json
from gr2_jax.data.jsonl import BadLines, read_interactions, read_items, read_slates, write_interactions, write_items, write_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import DataError


def run(config, run, progress, stop):
  """Writes `items.jsonl.gz`, `interactions.jsonl.gz`, and where the source has slates `slates_SPLIT.jsonl.gz` (and the market's utilities)."""
  source = config.data.source
  if source == "synthetic":
    catalogue, histories, slates = _synthetic(config, run)
  elif source.startswith("tfds:"):
    catalogue, histories, slates = _from_tfds(source.removeprefix("tfds:"), config.data.manual_dir)
  else:
    catalogue, histories, slates = _from_files(pathlib.Path(source), config.data.on_error, run)
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
  return prepared.load_catalogue(items), prepared.load_histories(histories), {}


def _from_files(folder, on_error, run):
  report = BadLines()
  options = {"on_error": on_error, "report": report}
  catalogue = read_items(_find(folder, "items"), **options)
  histories = read_interactions(_find(folder, "interactions"), catalogue, **options)
  slates = {split: read_slates(path, catalogue, **options) for split in SPLITS if (path := _find(folder, f"slates_{split}", required=False))}
  if len(report):
    report.write(run.path("data", "bad_lines.jsonl"))
  if not histories:
    raise DataError(f"{folder}: no usable interactions are left")
  return catalogue, histories, slates


def _find(folder, stem, required=True):
  for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz"):
    if (folder / name).exists():
      return folder / name
  if required:
    raise DataError(f"config.data.source: {folder} has no {stem}.jsonl or {stem}.jsonl.gz; point it at a folder that has, or use 'synthetic'")
  return None
