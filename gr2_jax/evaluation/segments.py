"""Test slates in buckets that have tables of their own: by history length, the target's place and popularity, and the day.

Edges are the same for every run, so that the tables of two can be laid side by side.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gr2_jax.data.schema import History, Slate
from gr2_jax.data.splits import SECONDS_PER_DAY

HISTORY_STARTS = (1, 6, 11, 21)  # items of the history with which each bucket begins
PLACE_STARTS = (1, 2, 4, 7)  # places in the upstream order
HEAD, TORSO = 0.5, 0.8  # shares of the log's events that the items before the end of each have together
DAYS = ("same_day", "different_day")


def bucket_slates(slates: Sequence[Slate], labels: np.ndarray, log: Sequence[History]) -> dict[str, dict[str, np.ndarray]]:
  """Dimension -> bucket -> which slates `[n]` bool lie in it; every slate in one bucket of a dimension, or in none.

  `history_length`: items of the slate's history. `upstream_place`: where the target stands in labels `[n, K]` (-1 at padding), the first
  of the best label, counted from 1. `target_popularity`: the same item's, see `popularity_classes` of `log`. `day`: whether the item before
  was taken on the request's day (UTC), of slates that know both times; left out where their own segments say so.
  """
  places = np.asarray(labels).argmax(axis=1)
  lengths = np.array([len(slate.history) for slate in slates])
  targets = [slate.candidates[place] for slate, place in zip(slates, places, strict=True)]
  classes = popularity_classes(log)
  popularity = np.array([classes.get(target, "tail") for target in targets])
  buckets = {
    "history_length": _between(lengths, HISTORY_STARTS),
    "upstream_place": _between(places + 1, PLACE_STARTS),
    "target_popularity": {name: popularity == name for name in ("head", "torso", "tail")},
  }
  if not any(slate.segment in DAYS for slate in slates):
    same = [None if None in (slate.timestamp, slate.last_time) else _days_apart(slate) == 0 for slate in slates]
    buckets["day"] = {name: np.array([of is wanted for of in same]) for name, wanted in zip(DAYS, (True, False), strict=True)}
  return buckets


def popularity_classes(log: Sequence[History]) -> Mapping[str, str]:
  """`head`, `torso` or `tail` of every item that the log names, by its number of events; an item without any is of the tail.

  Head are the items of which those taken more often have less than half of all events together, torso those of which they have less than
  four fifths. Items that were taken equally often share a class.
  """
  counts = Counter(item for history in log for item in history.items)
  of_count = Counter(counts.values())
  total, before = sum(counts.values()), 0
  class_of_count = {}
  for count in sorted(of_count, reverse=True):
    class_of_count[count] = "head" if before < HEAD * total else "torso" if before < TORSO * total else "tail"
    before += count * of_count[count]
  return {item: class_of_count[count] for item, count in counts.items()}


def _between(values: np.ndarray, starts: Sequence[int]) -> dict[str, np.ndarray]:
  """`1`, `2 to 3`, …, `7 or more` -> where the values lie so."""
  named = {}
  for start, end in zip(starts, [*starts[1:], None], strict=True):
    inside = (values >= start) & (values < (np.inf if end is None else end))
    named[f"{start} or more" if end is None else str(start) if end == start + 1 else f"{start} to {end - 1}"] = inside
  return named


def _days_apart(slate: Slate) -> int:
  assert slate.timestamp is not None and slate.last_time is not None
  return slate.timestamp // SECONDS_PER_DAY - slate.last_time // SECONDS_PER_DAY
