"""Counts of a config's data: from the market's settings, from the user's files, or as they are published."""

import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from experiments.stage_steps import Sizes
from experiments.stages.tokenize import TokenizeOptions, count_item_inputs
from gr2_jax.data.folders import find_file, find_slates
from gr2_jax.data.jsonl import BadLines, read_interactions, read_items, read_slates
from gr2_jax.data.schema import SPLITS
from gr2_jax.data.slates import SHORTEST_CUT
from gr2_jax.errors import ConfigError
from gr2_jax.semantic_ids.sizes import Inputs, choose_sizes
from gr2_jax.settings import read_record

# Items, users and interactions of the 5-core files of Amazon Reviews 2014.
_PUBLISHED = {"beauty": (12_101, 22_363, 198_502), "sports": (18_357, 35_598, 296_337), "toys": (11_924, 19_412, 167_597)}
# Share of requests whose target an upstream ranker finds among its first ten on Amazon Beauty: of training, and of validation and test.
_RETRIEVED = {"ctr": (0.087, 0.06), "sasrec": (0.133, 0.11), "beam": (0.08, 0.08)}


@dataclasses.dataclass(frozen=True)
class Counted:
  """The `sizes` of the data, and in `notes` sentences about what was assumed of them."""

  sizes: Sizes
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Log:
  """What a source holds: items a user, and slates by split, of at most so many candidates; none where it has none."""

  inputs: Inputs
  lengths: np.ndarray
  slates: dict[str, int]
  candidates: int
  note: str

  @property
  def users(self) -> int:
    """Who have a history."""
    return len(self.lengths)


def count_data(config: ConfigDict) -> Counted:
  """Counts what the stage `data` would read. Raises what reading raises, and ConfigError for a source that is not there."""
  options: TokenizeOptions = read_record(TokenizeOptions, config, "tokenize")
  log = _count_log(config, options)
  levels, codebook_size = choose_sizes(log.inputs, options.rqvae.levels, options.rqvae.codebook_size)
  vector_dim = np.load(options.vectors, mmap_mode="r").shape[1] if options.vectors else min(options.dim, log.inputs.items)
  notes = [log.note, f"The vocabulary has all {options.text_pieces:,} text pieces that it may have; few texts give fewer."]
  slates, candidates = log.slates, log.candidates
  if config.slates.source != "log":
    slates, candidates = _count_built(config, log), config.slates.size
    notes.append(
      "Slates are built from the log, and how many is known only when the upstream ranker is fitted: it is taken to find as large a share "
      "of the targets as on Amazon Beauty, or what chance finds in a small catalogue."
    )
  sizes = Sizes(
    items=log.inputs.items,
    users=log.users,
    interactions=int(log.lengths.sum()),
    slates=slates,
    candidates=candidates,
    levels=levels,
    codebook_size=codebook_size,
    vector_dim=vector_dim,
  )
  return Counted(sizes, tuple(notes))


def _count_log(config: ConfigDict, options: TokenizeOptions) -> _Log:
  source = config.data.source
  if source == "synthetic":
    market = config.data.market
    slates = {split: market[f"{split}_slates"] for split in SPLITS}
    lengths = np.linspace(market.min_history, market.max_history, sum(slates.values())).round().astype(int)
    note = "Items, users and slates are those of the market's settings; all lengths of histories are taken to be as frequent."
    return _Log(Inputs(market.num_items, market.num_items, 1), lengths, slates, market.slate_size, note)
  if source.startswith("tfds:") and source != "tfds:own_log":
    name = source.removeprefix("tfds:")
    if name not in _PUBLISHED:
      raise ConfigError(f"--config.data.source: {source!r} is not known; choose one of {', '.join(f'tfds:{of}' for of in _PUBLISHED)}")
    items, users, interactions = _PUBLISHED[name]
    note = f"Items, users and interactions are the published ones of {name}; the data themselves were not read, which would prepare them."
    return _Log(Inputs(items, items, 1), np.diff(np.linspace(0, interactions, users + 1).astype(int)), {}, 0, note)
  return _count_files(pathlib.Path(config.data.manual_dir if source == "tfds:own_log" else source), config, options)


def _count_files(folder: pathlib.Path, config: ConfigDict, options: TokenizeOptions) -> _Log:
  on_error, report = config.data.on_error, BadLines()
  items = find_file(folder, "items") if folder.is_dir() else None
  if items is None:
    raise ConfigError(f"--config.data.source: {str(folder)!r} is no folder with items.jsonl[.gz]; give one, or synthetic, or tfds:NAME")
  catalogue = read_items(items, on_error=on_error, report=report)
  slates = {split: read_slates(path, catalogue, on_error=on_error, report=report) for split, path in find_slates(folder).items()}
  path = find_file(folder, "interactions")
  histories = read_interactions(path, catalogue, on_error=on_error, report=report) if path else ()
  lengths = [len(history.items) for history in histories] or [len(slate.history) for of in slates.values() for slate in of]
  candidates = max((len(slate.candidates) for of in slates.values() for slate in of), default=0)
  counts = {split: len(slates.get(split, ())) for split in SPLITS} if slates else {}
  note = f"Items, users and interactions were counted in {folder}."
  return _Log(count_item_inputs(options, catalogue), np.array(lengths), counts, candidates, note)


def _count_built(config: ConfigDict, log: _Log) -> dict[str, int]:
  """Slates by split of a ranker that is fitted here, or of the mid-trained model's beams."""
  options = config.slates
  of_train, of_others = _share_retrieved(options.source, config, log)
  held_out = max(1, round(of_others * log.users))
  if options.source == "beam":
    validation = max(1, round(held_out * options.validation_share))
    return {"train": held_out - validation, "validation": validation, "test": held_out}
  if options.source == "sasrec" and options.also == "ctr":
    of_train += _share_retrieved("ctr", config, log)[0]
  # A request needs two items before it, and the last two of a user are those of validation and test.
  asked = np.minimum(options.per_user, np.maximum(log.lengths - SHORTEST_CUT - 1, 0)).sum()
  return {"train": max(1, round(of_train * asked)), "validation": held_out, "test": held_out}


def _share_retrieved(source: str, config: ConfigDict, log: _Log) -> tuple[float, float]:
  """Of training requests and of others, at least what chance finds in a small catalogue."""
  by_chance = min(1.0, config.slates.size / log.inputs.items)
  of_train, of_others = _RETRIEVED[source]
  return max(of_train, by_chance), max(of_others, by_chance)
