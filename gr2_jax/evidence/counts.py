"""Past-only counts: how often an item followed another, and how often an item was taken, before a given moment."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from gr2_jax.data.schema import Catalogue, DataError, History, Slate

ALWAYS = np.iinfo(np.int64).min  # the time of an event whose time is unknown: it lies before every request
NEVER = np.iinfo(np.int64).max  # the time of an event that has not happened


@dataclasses.dataclass(frozen=True, eq=False)
class _Events:
  """Timed events of integer kinds, sorted so that "how many of this kind before t" is two binary searches.

  `kinds [M]`: the distinct kinds, ascending. `times [S]`: the distinct times, ascending.
  `codes [E]`: kind index · (S + 1) + time index of each event, ascending; ranks, not raw values, so that the product fits 64 bits.
  """

  kinds: np.ndarray
  times: np.ndarray
  codes: np.ndarray

  @classmethod
  def sort(cls, kinds: np.ndarray, times: np.ndarray) -> "_Events":
    kinds, kind_index = np.unique(kinds, return_inverse=True)
    times, time_index = np.unique(times, return_inverse=True)
    return cls(kinds, times, np.sort(kind_index * (len(times) + 1) + time_index))

  def count(self, kinds: np.ndarray, before: ArrayLike | None) -> np.ndarray:
    """Events of `kinds [..]` strictly before `before [..]` (all when None); int64 of the broadcast shape."""
    if before is None:
      past = np.asarray(len(self.times), np.int64)
    else:
      before = np.asarray(before)
      if before.size and before.dtype.kind not in "iu":  # a NaN would sort last and let the future in
        raise TypeError("before: give whole Unix seconds for every row, or None to count all events")
      past = np.searchsorted(self.times, before, side="left")
    kinds, past = np.broadcast_arrays(kinds, past)
    if not len(self.kinds):
      return np.zeros(kinds.shape, np.int64)
    index = np.minimum(np.searchsorted(self.kinds, kinds), len(self.kinds) - 1)
    first = index * (len(self.times) + 1)
    counts = np.searchsorted(self.codes, first + past) - np.searchsorted(self.codes, first)
    return np.where(self.kinds[index] == kinds, counts, 0)

  def first(self, kinds: np.ndarray) -> np.ndarray:
    """Time of the first event of each kind `[..]`, `NEVER` for a kind without any."""
    return self._time_of(kinds, 0)

  def last(self, kinds: np.ndarray, before: ArrayLike | None) -> np.ndarray:
    """Time of the last event of `kinds [..]` strictly before `before [..]`, `NEVER` where there is none; of the broadcast shape."""
    count = self.count(kinds, before)
    return np.where(count > 0, self._time_of(np.broadcast_to(kinds, count.shape), count - 1), NEVER)

  def _time_of(self, kinds: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """Time of event `number` (from 0) of each kind; `NEVER` for a kind without events."""
    if not len(self.kinds):
      return np.full(np.shape(kinds), NEVER)
    index = np.minimum(np.searchsorted(self.kinds, kinds), len(self.kinds) - 1)
    start = np.searchsorted(self.codes, index * (len(self.times) + 1))
    event = np.clip(start + number, 0, len(self.codes) - 1)
    return np.where(self.kinds[index] == kinds, self.times[self.codes[event] % (len(self.times) + 1)], NEVER)


def index_names(names: Sequence[str | None]) -> tuple[tuple[str, ...], np.ndarray]:
  """(distinct names, sorted; index of each name into them `[N]`, -1 for None, which matches nothing)."""
  distinct = tuple(sorted({name for name in names if name is not None}))
  index_of = {name: index for index, name in enumerate(distinct)}
  return distinct, np.asarray([-1 if name is None else index_of[name] for name in names], np.int64)


def _flatten(histories: Sequence[History], catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(rows, times, user index) of all interactions in one line each, `[E]`."""
  rows: list[int] = []
  times: list[int] = []
  for history in histories:
    try:
      rows.extend(catalogue.to_rows(history.items))
    except DataError as error:
      raise DataError(f"items: user {history.user!r}: {error}") from None
    times.extend(history.timestamps or (ALWAYS,) * len(history.items))
  users = np.repeat(np.arange(len(histories)), [len(history.items) for history in histories])
  return np.asarray(rows, np.int64), np.asarray(times, np.int64), users


def _check_rows(rows: ArrayLike, num_items: int) -> np.ndarray:
  rows = np.asarray(rows, np.int64)
  if rows.size and (rows.min() < -1 or rows.max() >= num_items):
    raise IndexError(f"rows must lie in -1..{num_items - 1}; they span {rows.min()}..{rows.max()}")
  return rows


def _largest(rows: np.ndarray, counts: np.ndarray, top: int) -> list[tuple[int, int]]:
  """The `top` (row, count) with the largest positive counts, ties by row."""
  order = np.lexsort((rows, -counts))[:top]
  return [(int(rows[i]), int(counts[i])) for i in order if counts[i] > 0]


@dataclasses.dataclass(frozen=True, eq=False)
class TransitionCounts:
  """How often one item followed another in the fitted histories; every query can be limited to the past.

  `num_items`: how many items there are, or groups of items where the counts were fitted on groups; queries name rows below it.
  """

  num_items: int
  events: _Events

  @classmethod
  def fit(
    cls,
    histories: Sequence[History],
    catalogue: Catalogue,
    *,
    window: int = 1,
    directed: bool = True,
    groups: np.ndarray | None = None,
  ) -> "TransitionCounts":
    """Counts each pair (item, later item at most `window` steps on); the event's time is that of the later item.

    With `directed=False` (a, b) and (b, a) are one kind of event; a repeated item (a, a) still counts once.
    Events of histories without timestamps count as past for every request. With `groups [N]` (such as the index of each item's leaf
    category) an item counts as its group, and pairs with an item of group -1 are left out. Raises DataError for an unknown item.
    """
    if window < 1:
      raise ValueError(f"window: {window}; an item follows at least one step later")
    rows, times, users = _flatten(histories, catalogue)
    num_items = len(catalogue)
    if groups is not None:
      rows, num_items = groups[rows], int(groups.max(initial=0)) + 1
    kinds, whens = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for step in range(1, window + 1):
      same_user = users[:-step] == users[step:]
      if not same_user.any():
        break
      paired = same_user & (rows[:-step] >= 0) & (rows[step:] >= 0)
      source, target, when = rows[:-step][paired], rows[step:][paired], times[step:][paired]
      kinds.append(source * num_items + target)
      whens.append(when)
      if not directed:
        differ = source != target
        kinds.append((target * num_items + source)[differ])
        whens.append(when[differ])
    return cls(num_items, _Events.sort(np.concatenate(kinds), np.concatenate(whens)))

  def count(self, sources: ArrayLike, targets: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Transitions from `sources [..]` to `targets [..]` (catalogue rows) strictly before `before [..]` (Unix seconds).

    The three broadcast; returns int64 of the broadcast shape. Row -1 (padding) counts 0. Without `before` all events count.
    """
    sources, targets = _check_rows(sources, self.num_items), _check_rows(targets, self.num_items)
    kinds = np.where((sources < 0) | (targets < 0), -1, sources * self.num_items + targets)
    return self.events.count(kinds, before)

  def neighbours(self, row: int, before: int | None = None, top: int = 5) -> list[tuple[int, int]]:
    """The `top` items that most often followed `row`, as (row, count) with the most frequent first, ties by row."""
    if not 0 <= row < self.num_items:
      raise IndexError(f"row {row} is not in the catalogue of {self.num_items} items")
    low, high = np.searchsorted(self.events.kinds, [row * self.num_items, (row + 1) * self.num_items])
    kinds = self.events.kinds[low:high]
    return _largest(kinds % self.num_items, self.events.count(kinds, before), top)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCounts:
  """How often each item was taken in the fitted histories: its popularity, at any moment."""

  num_items: int
  events: _Events
  whens: np.ndarray  # times of all events, ascending

  @classmethod
  def fit(cls, histories: Sequence[History], catalogue: Catalogue) -> "ItemCounts":
    """Counts every interaction; those without a timestamp count as past for every request."""
    rows, times, _ = _flatten(histories, catalogue)
    return cls(len(catalogue), _Events.sort(rows, times), np.sort(times))

  def count(self, rows: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Interactions with `rows [..]` strictly before `before [..]` (Unix seconds, or None for all); row -1 counts 0."""
    return self.events.count(_check_rows(rows, self.num_items), before)

  def total(self, before: ArrayLike | None = None) -> np.ndarray:
    """Interactions with any item strictly before `before [..]` (all when None)."""
    return np.searchsorted(self.whens, np.asarray(NEVER if before is None else before), side="left")

  def first(self, rows: ArrayLike) -> np.ndarray:
    """Time of the first interaction with `rows [..]`; `NEVER` without any, `ALWAYS` where its time is unknown."""
    return self.events.first(_check_rows(rows, self.num_items))

  def last(self, rows: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Time of the last interaction with `rows [..]` strictly before `before [..]`; `NEVER` without any, `ALWAYS` where unknown."""
    return self.events.last(_check_rows(rows, self.num_items), before)

  def most_popular(self, top: int, before: int | None = None) -> list[tuple[int, int]]:
    """The `top` items as (row, count), the most frequent first, ties by row; items never taken are left out."""
    return _largest(self.events.kinds, self.events.count(self.events.kinds, before), top)


def next_counts(slate: Slate, catalogue: Catalogue, transitions: TransitionCounts) -> np.ndarray:
  """How often each candidate was taken right after the slate's last item, strictly before its timestamp; int64 `[K]` as in the slate.

  Without a timestamp all events count; an empty history gives zeros, and so does an item that came after the counts were fitted.
  Raises DataError for an item that the catalogue lacks.
  """
  if not slate.history:
    return np.zeros(len(slate.candidates), np.int64)
  rows = np.asarray(catalogue.to_rows([slate.history[-1], *slate.candidates]))
  rows = np.where(rows < transitions.num_items, rows, -1)  # a row added later never followed another
  return transitions.count(rows[0], rows[1:], slate.timestamp)
