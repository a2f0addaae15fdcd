"""Stage `data`: whatever the source, the run's own copy of items, interactions and slates in the common form."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.folders import find_file, find_slates
from gr2_jax.data.jsonl import (
  BadLineError,
  BadLines,
  OnError,
  read_interactions,
  read_items,
  read_slates,
  write_interactions,
  write_items,
  write_slates,
)
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.market_bayes import has_few_sets
from gr2_jax.data.schema import SPLITS, TIME_LIMIT, Catalogue, DataError, History, Slate
from gr2_jax.data.slate_histories import histories_of_slates
from gr2_jax.data.splits import SPLITTERS, find_unseen, first_days, split_by_time, write_day
from gr2_jax.errors import ConfigError
from gr2_jax.files import write_json
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, setting


class Records(NamedTuple):
  """What a source holds: `histories` None where it has slates alone, which are given by split."""

  catalogue: Catalogue
  histories: Sequence[History] | None
  slates: Mapping[str, Sequence[Slate]]


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """Where items, interactions and slates come from. Raises ValueError."""

  source: str = setting(
    "synthetic",
    "where items, interactions and slates come from: synthetic; a folder with items.jsonl[.gz] and interactions.jsonl[.gz], "
    "slates_*.jsonl[.gz] or both; or tfds:NAME (beauty, sports, toys, own_log)",
  )
  manual_dir: str = setting("", "folder of the files that tfds:NAME reads; empty: it downloads them")
  on_error: str = setting(
    "stop",
    "what happens at a bad line; skip leaves out bad lines and events of unknown items, counts them, and lists them in "
    "RUN/data/bad_lines.jsonl",
    choices=("stop", "skip"),
  )
  split: str = setting(
    "leave_one_out",
    "how a log is split where slates are built of it: leave_one_out: of each user the last item is the test's and the one before it the "
    "validation's; time: the last tenth of days is the test's and the tenth before it the validation's",
    choices=tuple(SPLITTERS),
  )
  max_history: int = setting(50, "latest items of a request that is built from the log", unit="items", low=1)
  market_seed: int = setting(0, "seed of the synthetic market", low=0)
  market: MarketConfig = setting(MarketConfig(), "the synthetic market")

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `items.jsonl.gz` and `interactions.jsonl.gz`; `slates_SPLIT.jsonl.gz` where the source has slates; a market's truth."""
  catalogue, histories, slates = _load(stage)
  check_slates(stage.config, slates)
  if histories is None:
    histories = _histories_of_slates(stage, slates)
  _note_targets_in_histories(stage, slates)
  by_time = _count_split(histories, stage.options.max_history) if stage.options.split == "time" else {}
  write_items(stage.path("items.jsonl.gz"), catalogue.items)
  write_interactions(stage.path("interactions.jsonl.gz"), histories)
  for split, records in slates.items():
    write_slates(stage.path(f"slates_{split}.jsonl.gz"), records)
  counts = {
    "source": stage.options.source,
    "items": len(catalogue),
    "users": len(histories),
    "interactions": sum(len(history.items) for history in histories),
    "slates": {split: len(records) for split, records in slates.items()},
    **by_time,
  }
  write_json(stage.path("counts.json"), counts)
  stage.say(f"{counts['items']:,} items, {counts['users']:,} users, {counts['interactions']:,} interactions")


def _histories_of_slates(stage: StageContext, slates: Mapping[str, Sequence[Slate]]) -> Sequence[History]:
  if stage.config.slates.source != "log":
    raise DataError(
      f"config.slates.source: {stage.config.slates.source!r} builds slates from interactions.jsonl[.gz], which the source lacks; add that "
      "file, or re-rank the slates that are there: --config.slates.source=log"
    )
  histories = histories_of_slates(slates)
  if not histories:
    raise DataError(
      "slates: without timestamps no user has a history that holds none of their targets; give timestamps, or interactions.jsonl[.gz]"
    )
  stage.progress.note(f"data: no interactions.jsonl; the histories of the slates of {len(histories):,} users are the log")
  return histories


def _count_split(histories: Sequence[History], max_history: int) -> dict[str, Any]:
  """Where the log is split by time, and what that leaves; raises DataError where it leaves nothing."""
  try:
    split, starts = split_by_time(histories, max_history), first_days(histories)
  except DataError as error:
    raise DataError(f"--config.data.{error}") from None
  counts: dict[str, Any] = {
    "training": {"users": len(split.train), "interactions": sum(len(history.items) for history in split.train)},
  }
  for name, requests, start, end in (("validation", split.validation, *starts), ("test", split.test, starts[1], TIME_LIMIT)):
    unseen = find_unseen(split.train, [request.user for request in requests], [request.target for request in requests])
    counts[name] = {
      "first_day": write_day(start),
      "requests": len(requests),
      "first_interactions": sum(start <= history.timestamps[0] < end for history in histories),
      **{group: int(of.sum()) for group, of in unseen.items()},
    }
  return {"split_by_time": counts}


def _note_targets_in_histories(stage: StageContext, slates: Mapping[str, Sequence[Slate]]) -> None:
  every = [slate for of_split in slates.values() for slate in of_split]
  if found := sum(not slate.targets.isdisjoint(slate.history) for slate in every):
    stage.progress.note(
      f"data: {found:,} of {len(every):,} slates have a target that their history holds already: right where people buy again, wrong where "
      "a history was written after its request"
    )


def _load(stage: StageContext) -> Records:
  source = stage.options.source
  if source == "synthetic":
    return _synthetic(stage)
  if source.startswith("tfds:"):
    return _from_tfds(stage, source.removeprefix("tfds:"))
  report, listed = BadLines(), stage.path("bad_lines.jsonl")
  try:
    return _from_files(pathlib.Path(source), stage.options.on_error, report)
  except BadLineError as error:
    raise BadLineError(f"{error}; or pass --config.data.on_error=skip") from None
  finally:  # the list is wanted most when too little is left
    listed.unlink(missing_ok=True)  # of an attempt that failed
    kinds = {"bad lines": len(report.lines), "events of unknown items": len(report.events)}
    if told := " and ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count):
      report.write(listed)
      stage.progress.note(f"data: {told} left out, listed in {listed}")


def check_slates(config: ConfigDict, slates: Mapping[str, Sequence[Slate]]) -> None:
  """What would otherwise come out after mid-training: slates that are missing."""
  if config.slates.source != "log":
    return
  for split in SPLITS:
    if not slates.get(split):
      raise DataError(
        f"config.slates.source: 'log' needs slates_{split}.jsonl[.gz] with at least one usable line in config.data.source; add it, or "
        "build slates with --config.slates.source=ctr, =sasrec or =beam"
      )


def _synthetic(stage: StageContext) -> Records:
  market = make_market(stage.options.market, stage.options.market_seed)
  for split, utilities in market.utilities.items():
    np.save(stage.path(f"utilities_{split}.npy"), utilities)
  if has_few_sets(stage.options.market):  # otherwise there is no Bayes order
    shelf: dict[str, Any] = {**market.shelf}
    np.savez(stage.path("shelf.npz"), **shelf)
  return Records(market.catalogue, market.histories, market.slates)


def _from_tfds(stage: StageContext, name: str) -> Records:
  """A source that TFDS prepares; the user's own files in a folder that is gone again when they are read."""
  from gr2_jax.data.sources import load_source  # TFDS takes its time

  manual_dir = pathlib.Path(stage.options.manual_dir) if stage.options.manual_dir else None
  own_dir = stage.path("tfds")
  try:
    return Records(*load_source(name, manual_dir=manual_dir, own_dir=own_dir))
  finally:
    shutil.rmtree(own_dir, ignore_errors=True)


def _from_files(folder: pathlib.Path, on_error: OnError, report: BadLines) -> Records:
  catalogue = read_items(_existing(folder, "items"), on_error=on_error, report=report)
  slate_files = find_slates(folder)
  log = find_file(folder, "interactions") if slate_files else _existing(folder, "interactions")
  histories = None if log is None else read_interactions(log, catalogue, on_error=on_error, report=report)
  slates = {split: read_slates(path, catalogue, on_error=on_error, report=report) for split, path in slate_files.items()}
  return Records(catalogue, histories, slates)


def _existing(folder: pathlib.Path, stem: str) -> pathlib.Path:
  path = find_file(folder, stem)
  if path is None:
    raise DataError(f"config.data.source: {folder} has no {stem}.jsonl or {stem}.jsonl.gz; give a folder that has, or 'synthetic'")
  return path


def check(config: ConfigDict) -> None:
  """What becomes of bad lines."""
  if config.data.on_error == "skip" and config.data.source.startswith("tfds:"):
    raise ConfigError("--config.data.on_error: 'skip' is for a folder of JSONL files; give that folder as --config.data.source")


def unused(config: ConfigDict) -> tuple[str, ...]:
  """The market where the data are not synthetic, and what is said of files where they are."""
  source = config.data.source
  if source == "synthetic":
    return ("data.manual_dir", "data.on_error")
  return ("data.market", "data.market_seed", *(() if source.startswith("tfds:") else ("data.manual_dir",)))


STAGE = Stage(
  "data", run, reads=("seed", "data"), options=DataOptions, files=("data.source", "data.manual_dir"), unused=unused, check=check
)
