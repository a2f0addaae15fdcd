"""The records that every stage speaks, and the checks they pass before any work starts."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from gr2_jax.errors import UserError

SPLITS = ("train", "validation", "test")
LABELS = (0, 1, 2)  # none, click, conversion
TIME_LIMIT = 10**11  # Unix seconds, in the year 5138; today's times in milliseconds lie above


class DataError(UserError, ValueError):
  """Input that cannot be used; the message names where it stands and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Item:
  """One catalogue item. `categories` is the path from the broadest to the leaf category; `price` is in currency units."""

  id: str
  title: str
  brand: str | None = None
  categories: tuple[str, ...] = ()
  description: str | None = None
  price: float | None = None

  @property
  def leaf(self) -> str:
    """The last name of the category path, or nothing."""
    return self.categories[-1] if self.categories else ""


@dataclasses.dataclass(frozen=True)
class History:
  """One user's interactions, oldest first; `timestamps` are Unix seconds, or empty when unknown."""

  user: str
  items: tuple[str, ...]
  timestamps: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slate:
  """A request to re-rank: what the user did before, and the candidates in the upstream order.

  `labels [K]`: 0 none, 1 click, 2 conversion; a single target is the case of one 1.
  `upstream_scores [K]`: what the upstream ranker gave the candidates, when known; they never rise along the order.
  `propensities [K]`: probability that the upstream position was examined, when the logger knew it. RL on scored answers weighs
  clicks by them where `rl.feedback.weighing` asks for it; nothing else reads them.
  `weight`: multiplies the slate's part in SFT, RL and every mean of the evaluation.
  `timestamp`: Unix seconds of the request; features may use only what happened before it.
  `segment`: a name by which tables split their users (for example `same_day` / `different_day`).
  `last_time`: Unix seconds of the history's last item.
  """

  user: str
  history: tuple[str, ...]
  candidates: tuple[str, ...]
  labels: tuple[int, ...]
  upstream_scores: tuple[float, ...] | None = None
  propensities: tuple[float, ...] | None = None
  weight: float = 1.0
  timestamp: int | None = None
  segment: str | None = None
  last_time: int | None = None

  @property
  def targets(self) -> frozenset[str]:
    """The candidates that were taken."""
    return frozenset(item for item, label in zip(self.candidates, self.labels, strict=True) if label)


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """All items; an item's row is its position here, and the arrays of every stage are indexed by row.

  Raises DataError for an id that occurs twice.
  """

  items: tuple[Item, ...]
  rows: Mapping[str, int] = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self) -> None:
    rows: dict[str, int] = {}
    for row, item in enumerate(self.items):
      if item.id in rows:
        raise DataError(f"items: id {item.id!r} occurs twice; give each item one line")
      rows[item.id] = row
    object.__setattr__(self, "rows", rows)

  def __len__(self) -> int:
    return len(self.items)

  def to_rows(self, ids: Sequence[str]) -> list[int]:
    """Rows of `ids`; raises DataError for an item that the catalogue lacks."""
    try:
      return [self.rows[i] for i in ids]
    except KeyError as error:
      raise DataError(f"unknown item {error.args[0]!r}; add it to the items file or drop it") from None


def check_item(item: Item) -> None:
  """Raises DataError unless the item has an id and a usable price."""
  if not item.id:
    raise DataError("item: empty id; every item needs one")
  if item.price is not None and (not math.isfinite(item.price) or item.price < 0):
    raise DataError(f"price: {item.price!r} of item {item.id!r} is not a price; leave it out when unknown")


def check_time(time: int, name: str) -> None:
  """Raises DataError unless `time` of field `name` can be Unix seconds: from 0 to below 1e11."""
  if not 0 <= time < TIME_LIMIT:
    raise DataError(
      f"{name}: {time!r} is no time in Unix seconds, which lie from 0 to below {TIME_LIMIT:,}; divide milliseconds by 1,000, "
      "microseconds by 1,000,000"
    )


def check_history(history: History, catalogue: Catalogue | None = None) -> None:
  """Raises DataError for an empty, unordered or unknown-item history (items are not looked up without a catalogue)."""
  if not history.user:
    raise DataError("user: empty id; every line needs one")
  if not history.items:
    raise DataError(f"items: user {history.user!r} has no interactions; leave such users out")
  times = history.timestamps
  if times:
    if len(times) != len(history.items):
      raise DataError(f"timestamps: {len(times)} for {len(history.items)} items; give one for each item or none at all")
    if any(b < a for a, b in zip(times, times[1:], strict=False)):
      raise DataError("timestamps: they decrease; sort the interactions by time, oldest first")
    for time in (times[0], times[-1]):
      check_time(time, "timestamps")
  if catalogue is not None:
    catalogue.to_rows(history.items)


def check_slate(slate: Slate, catalogue: Catalogue | None = None) -> None:
  """Raises DataError unless the slate can be ranked and scored; a history may be empty only in serving, not here."""
  size = len(slate.candidates)
  if not slate.history:
    raise DataError(f"history: user {slate.user!r} has none; re-ranking needs at least one interaction")
  if size < 2:
    raise DataError(f"candidates: a slate of {size} has nothing to re-order; give at least two")
  if len(set(slate.candidates)) != size:
    twice = next(c for i, c in enumerate(slate.candidates) if c in slate.candidates[:i])
    raise DataError(f"candidates: {twice!r} is repeated; list each candidate once")
  if len(slate.labels) != size:
    raise DataError(f"labels: {len(slate.labels)} for {size} candidates; give one label for each")
  if any(label not in LABELS for label in slate.labels):
    raise DataError(f"labels: {list(slate.labels)}; use 0 none, 1 click, 2 conversion (metrics count a label as 2^label - 1)")
  if not any(slate.labels):
    raise DataError("labels: all are 0, the target is missing from the slate; keep slates that contain it")
  for name in ("upstream_scores", "propensities"):
    values = getattr(slate, name)
    if values is not None and len(values) != size:
      raise DataError(f"{name}: {len(values)} for {size} candidates; give one for each or leave the field out")
    if values is not None and not all(math.isfinite(v) for v in values):
      raise DataError(f"{name}: {list(values)} holds a NaN or infinity; leave the field out when unknown")
  if slate.upstream_scores is not None and any(b > a for a, b in itertools.pairwise(slate.upstream_scores)):
    raise DataError(
      "upstream_scores: they rise along the candidates, which come in the upstream order, best first; sort the candidates by them, "
      "or leave the field out"
    )
  if slate.propensities is not None and any(not 0 < p <= 1 for p in slate.propensities):
    raise DataError("propensities: must lie in (0, 1]; they are probabilities of examination")
  if not math.isfinite(slate.weight) or slate.weight <= 0:
    raise DataError(f"weight: {slate.weight!r} must be a positive number")
  if slate.timestamp is not None:
    check_time(slate.timestamp, "timestamp")
  if slate.last_time is not None:
    check_time(slate.last_time, "last_time")
    if slate.timestamp is not None and slate.last_time > slate.timestamp:
      raise DataError(f"last_time: {slate.last_time} lies after the request's timestamp {slate.timestamp}; a history is past")
  if catalogue is not None:
    catalogue.to_rows(slate.history + slate.candidates)
