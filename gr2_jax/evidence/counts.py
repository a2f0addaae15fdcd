"""Past-only counts: how often an item followed another, and how often an item was taken, before a given moment."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from gr2_jax.data.schema import Catalogue, DataError, History, Slate

ALWAYS = np.iinfo(np.int64).min  # the time of an event whose time is unknown: it lies before every request
NEVER = np.iinfo(np.int64).max  # the time of an event that has not happened


@dataclasses.dataclass(frozen=True, eq=False)
class _Events:
  """Timed events of integer kinds, sorted so that "how many of this kind before t" is two binary searches.

  `kinds [M + 1]`, `times [S + 1]`: the distinct kinds and times, ascending, and `NEVER` behind them, so that every search ends at one.
  `codes [E]`: kind index · (S + 1) + time index of each event, ascending; ranks, not raw values, so that the product fits 64 bits.
  `starts [M + 1]`: the place in `codes` where each kind begins.
  """

  kinds: np.ndarray
  times: np.ndarray
  codes: np.ndarray
  starts: np.ndarray

  @classmethod
  def none(cls) -> "_Events":
    return cls(np.asarray([NEVER]), np.asarray([NEVER]), np.zeros(0, np.int64), np.zeros(1, np.int64))

  def add(self, kinds: np.ndarray, times: np.ndarray) -> "_Events":
    """With further events, as if all had been added at once. What is there is copied, not sorted again."""
    all_kinds, new_kinds = _unite(self.kinds, kinds)
    all_times, new_times = _unite(self.times, times)
    size = len(all_times)
    of_kind = np.repeat(np.arange(len(self.kinds)), np.diff(self.starts, append=len(self.codes)))
    of_time = self.codes - of_kind * len(self.times)
    there = all_kinds.searchsorted(self.kinds)[of_kind] * size + all_times.searchsorted(self.times)[of_time]
    new = np.sort(new_kinds * size + new_times)
    codes = np.insert(there, there.searchsorted(new), new)
    return _Events(all_kinds, all_times, codes, codes.searchsorted(np.arange(len(all_kinds)) * size))

  def count(self, kinds: np.ndarray, before: ArrayLike | None) -> np.ndarray:
    """Events of `kinds [..]` strictly before `before [..]` (all when None); int64 of the broadcast shape."""
    before = np.asarray(NEVER if before is None else before)
    if before.size and before.dtype.kind not in "iu":  # a NaN would sort last and let the future in
      raise TypeError("before: give whole Unix seconds for every row, or None to count all events")
    index = self.kinds.searchsorted(kinds)
    ends = self.codes.searchsorted(index * len(self.times) + self.times.searchsorted(before))
    return np.where(self.kinds[index] == kinds, ends - self.starts[index], 0)

  def time_of(self, kinds: np.ndarray, number: ArrayLike) -> np.ndarray:
    """Time of event `number [..]` (from 0, below their count) of each kind `[..]`; `NEVER` for a number below 0 and a kind without any."""
    index = self.kinds.searchsorted(kinds)
    there = (self.kinds[index] == kinds) & (np.asarray(number) >= 0)
    events = np.where(there, self.starts[index] + number, 0)
    return np.where(there, self.times[self.codes[events] % len(self.times)], NEVER) if len(self.codes) else np.full(events.shape, NEVER)


def _unite(there: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(distinct values of both, ascending; where each of `new` stands in them); `there` is so already, and ends with the largest."""
  distinct, index = np.unique(new, return_inverse=True)
  places = there.searchsorted(distinct)
  missing = there[places] != distinct
  together = np.insert(there, places[missing], distinct[missing])
  return together, together.searchsorted(distinct)[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
  """Histories in one line each, one behind the other: catalogue rows, times (`ALWAYS` where unknown), number of the user and whether the
  interaction is to be counted, all `[E]`; the others are counted already, and here so that later ones can follow them.
  """

  rows: np.ndarray
  times: np.ndarray
  users: np.ndarray
  new: np.ndarray

  @classmethod
  def of(cls, histories: Sequence[History], catalogue: Catalogue, counted: Sequence[int] = ()) -> "Interactions":
    """Of each history the first `counted` (none given: 0) are counted already. Raises DataError for an item that the catalogue lacks."""
    rows: list[int] = []
    times: list[int] = []
    for history in histories:
      try:
        rows.extend(catalogue.to_rows(history.items))
      except DataError as error:
        raise DataError(f"items: user {history.user!r}: {error}") from None
      times.extend(history.timestamps or (ALWAYS,) * len(history.items))
    lengths = np.asarray([len(history.items) for history in histories], np.int64)
    new = np.ones(len(rows), bool)
    for start, number in zip(np.cumsum(lengths) - lengths, counted, strict=False):
      new[start : start + number] = False
    return cls(np.asarray(rows, np.int64), np.asarray(times, np.int64), np.repeat(np.arange(len(histories)), lengths), new)


def index_names(names: Sequence[str | None]) -> tuple[tuple[str, ...], np.ndarray]:
  """(distinct names, sorted; index of each name into them `[N]`, -1 for None, which matches nothing)."""
  distinct = tuple(sorted({name for name in names if name is not None}))
  index_of = {name: index for index, name in enumerate(distinct)}
  return distinct, np.asarray([-1 if name is None else index_of[name] for name in names], np.int64)


def _check_rows(rows: ArrayLike, num_items: int) -> np.ndarray:
  rows = np.asarray(rows, np.int64)
  if rows.size and (rows + 1).view(np.uint64).max() > num_items:  # one pass: below -1 is very large
    raise IndexError(f"rows must lie in -1..{num_items - 1}; they span {rows.min()}..{rows.max()}")
  return rows


def _largest(rows: np.ndarray, counts: np.ndarray, top: int) -> list[tuple[int, int]]:
  """The `top` (row, count) with the largest positive counts, ties by row."""
  order = np.lexsort((rows, -counts))[:top]
  return [(int(rows[i]), int(counts[i])) for i in order if counts[i] > 0]


@dataclasses.dataclass(frozen=True, eq=False)
class TransitionCounts:
  """How often one item followed another in the fitted histories; every query can be limited to the past.

  `num_items`: how many items there are, or groups of items where the counts were fitted on groups; queries name rows below it. `window`,
  `directed`, `groups`: see `fit`.
  """

  num_items: int
  window: int
  directed: bool
  groups: np.ndarray | None
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
    return cls.none(len(catalogue), window=window, directed=directed, groups=groups).add(Interactions.of(histories, catalogue))

  @classmethod
  def none(cls, num_items: int, *, window: int = 1, directed: bool = True, groups: np.ndarray | None = None) -> "TransitionCounts":
    """What `fit` makes of no histories."""
    if window < 1:
      raise ValueError(f"window: {window}; an item follows at least one step later")
    return cls(num_items if groups is None else int(groups.max(initial=0)) + 1, window, directed, groups, _Events.none())

  def add(self, interactions: Interactions) -> "TransitionCounts":
    """The counts with further interactions, as if they had been fitted with the others. What is there is copied."""
    rows, times, users, new = interactions.rows, interactions.times, interactions.users, interactions.new
    if self.groups is not None:
      rows = self.groups[rows]
    kinds, whens = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for step in range(1, self.window + 1):
      same_user = users[:-step] == users[step:]
      if not same_user.any():
        break
      paired = same_user & new[step:] & (rows[:-step] >= 0) & (rows[step:] >= 0)
      source, target, when = rows[:-step][paired], rows[step:][paired], times[step:][paired]
      kinds.append(source * self.num_items + target)
      whens.append(when)
      if not self.directed:
        differ = source != target
        kinds.append((target * self.num_items + source)[differ])
        whens.append(when[differ])
    return dataclasses.replace(self, events=self.events.add(np.concatenate(kinds), np.concatenate(whens)))

  def count(self, sources: ArrayLike, targets: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Transitions from `sources [..]` to `targets [..]` (catalogue rows) strictly before `before [..]` (Unix seconds).

    The three broadcast; returns int64 of the broadcast shape. Row -1 (padding) counts 0. Without `before` all events count.
    """
    sources, targets = _check_rows(sources, self.num_items), _check_rows(targets, self.num_items)
    beside = np.where(targets < 0, -self.num_items * self.num_items, targets)  # so that whatever the source the kind is below 0
    return self.events.count(sources * self.num_items + beside, before)

  def matrix(self) -> sparse.csr_matrix:
    """All counts as a sparse matrix `[num_items, num_items]`, from row to column."""
    kinds, size = self.events.kinds[:-1], self.num_items
    counts = np.diff(self.events.starts).astype(np.float32)
    return sparse.csr_matrix((counts, (kinds // size, kinds % size)), (size, size))

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
    return cls.none(len(catalogue)).add(Interactions.of(histories, catalogue))

  @classmethod
  def none(cls, num_items: int) -> "ItemCounts":
    """What `fit` makes of no histories."""
    return cls(num_items, _Events.none(), np.zeros(0, np.int64))

  def add(self, interactions: Interactions) -> "ItemCounts":
    """The counts with further interactions, as if they had been fitted with the others. What is there is copied."""
    rows, times = interactions.rows[interactions.new], np.sort(interactions.times[interactions.new])
    whens = np.insert(self.whens, self.whens.searchsorted(times), times)
    return ItemCounts(self.num_items, self.events.add(rows, interactions.times[interactions.new]), whens)

  def count(self, rows: ArrayLike, before: ArrayLike | None = None) -> np.ndarray:
    """Interactions with `rows [..]` strictly before `before [..]` (Unix seconds, or None for all); row -1 counts 0."""
    return self.events.count(_check_rows(rows, self.num_items), before)

  def total(self, before: ArrayLike | None = None) -> np.ndarray:
    """Interactions with any item strictly before `before [..]` (all when None)."""
    return np.searchsorted(self.whens, np.asarray(NEVER if before is None else before), side="left")

  def time_of(self, rows: ArrayLike, number: ArrayLike) -> np.ndarray:
    """Time of interaction `number [..]` (from 0, below their count) with `rows [..]`, oldest first; `ALWAYS` where it is unknown.

    `NEVER` for a number below 0 and a row without any.
    """
    return self.events.time_of(_check_rows(rows, self.num_items), number)

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
