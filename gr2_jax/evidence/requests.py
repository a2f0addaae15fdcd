"""Slates as arrays, with the log that their facts are counted in."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.slates import pad_rows
from gr2_jax.data.splits import SECONDS_PER_DAY
from gr2_jax.evidence.counts import ALWAYS, NEVER, Interactions, ItemCounts, TransitionCounts, index_names
from gr2_jax.evidence.items import ItemArrays

WINDOW = 3  # steps within which two items of one history count as co-occurring
STEPS = 5  # within which an item counts as following another, farther ones weighing less
FAR = 50  # steps within which two items of one history count as co-occurring at any distance: a robot's history has thousands
RECENT = (30, 90, 365)  # days before a request
DECAY = 0.8  # weight of each step further back in a history
_AT_ONCE = 2**18  # numbers: what holds a vector for each past item and candidate, or a flag for each word, would not fit for large logs


@dataclasses.dataclass(frozen=True, eq=False)
class LogCounts:
  """What the facts count in the log: items, directed next items (right after, and within a few steps), co-occurrence (windowed, and at any
  distance), and directed next leaf categories.
  """

  popularity: ItemCounts
  transitions: TransitionCounts
  followers: TransitionCounts
  cooccurrence: TransitionCounts
  far_cooccurrence: TransitionCounts
  leaf_transitions: TransitionCounts

  @classmethod
  def fit(cls, histories: Sequence[History], catalogue: Catalogue) -> "LogCounts":
    """Counts `histories`; raises DataError for an item that the catalogue lacks."""
    size, leaves = len(catalogue), index_names([item.leaf or None for item in catalogue.items])[1]
    nothing = cls(
      popularity=ItemCounts.none(size),
      transitions=TransitionCounts.none(size),
      followers=TransitionCounts.none(size, window=STEPS),
      cooccurrence=TransitionCounts.none(size, window=WINDOW, directed=False),
      far_cooccurrence=TransitionCounts.none(size, window=FAR, directed=False),
      leaf_transitions=TransitionCounts.none(size, groups=leaves),
    )
    return nothing.add(Interactions.of(histories, catalogue))

  def add(self, interactions: Interactions) -> "LogCounts":
    """The counts with further interactions, as if they had been fitted with the others; up to `FAR` of a user's before stand there too.

    What is there is copied, however little is added, which takes about a sixth of a fit: add many at once.
    """
    return LogCounts(**{field.name: getattr(self, field.name).add(interactions) for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
  """n slates of at most K candidates and H past items.

  `history [n, H]`, `candidates [n, K]`: catalogue rows; padding is -1, before the history and behind the candidates. `before [n, 1]`: Unix
  seconds of the request, None where no slate has a time. `gap [n, 1]`: log(1 + days) since the user's last item, -1 where unknown.
  `upstream_scores [n, K]`: 0 where there are none. `lm_scores [n, K]`: the mid-trained model's log-probabilities, where it was asked.
  `log_rows [N + 1]`: the row in the counts of each item, -1 for one that the log lacks and for none; None: its own. What several facts
  read is computed once.
  """

  history: np.ndarray
  candidates: np.ndarray
  before: np.ndarray | None
  gap: np.ndarray
  upstream_scores: np.ndarray
  counts: LogCounts
  items: ItemArrays
  lm_scores: np.ndarray | None = None
  log_rows: np.ndarray | None = None

  @classmethod
  def of(
    cls,
    slates: Sequence[Slate],
    catalogue: Catalogue,
    counts: LogCounts,
    items: ItemArrays,
    *,
    max_history: int,
    lm_scores: np.ndarray | None = None,
    log_rows: np.ndarray | None = None,
  ) -> "Requests":
    """The arrays of slates; raises DataError for an unknown item."""
    past = [catalogue.to_rows(s.history[-max_history:]) for s in slates]
    past = [[-1] * (2 - len(rows)) + rows for rows in past]  # facts read the last two, be they none
    return cls(
      history=pad_rows(past, left=True).astype(np.int64),
      candidates=pad_rows([catalogue.to_rows(s.candidates) for s in slates]).astype(np.int64),
      before=times_before(slates),
      gap=np.asarray([_gap(s) for s in slates])[:, None],
      upstream_scores=pad_rows([s.upstream_scores or (0.0,) * len(s.candidates) for s in slates], fill=0.0),
      counts=counts,
      items=items,
      lm_scores=lm_scores,
      log_rows=log_rows,
    )

  @functools.cached_property
  def past(self) -> np.ndarray:
    """Where there is a past item, `[n, H, 1]`."""
    return (self.history >= 0)[:, :, None]

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Items of the history that are read, `[n, 1]`."""
    return self.past.sum(axis=1)

  @functools.cached_property
  def decay(self) -> np.ndarray:
    """`DECAY` to the power of the steps from the last item, `[1, H, 1]`."""
    return (DECAY ** np.arange(self.history.shape[1])[::-1])[None, :, None]

  @property
  def deep_before(self) -> np.ndarray | None:
    """`before` for arrays `[n, ?, K]`."""
    return None if self.before is None else self.before[:, :, None]

  @functools.cached_property
  def past_in_log(self) -> np.ndarray:
    """`history`, as rows in the counts."""
    return self.history if self.log_rows is None else self.log_rows[self.history]

  @functools.cached_property
  def own_in_log(self) -> np.ndarray:
    """`candidates`, as rows in the counts."""
    return self.candidates if self.log_rows is None else self.log_rows[self.candidates]

  @functools.cached_property
  def taken(self) -> np.ndarray:
    """Interactions with each past item and then with each candidate, `[n, H + K]`."""
    return self.counts.popularity.count(np.concatenate([self.past_in_log, self.own_in_log], axis=1), self.before)

  @property
  def past_popularity(self) -> np.ndarray:
    """Interactions with each past item, `[n, H]`."""
    return self.taken[:, : self.history.shape[1]]

  @property
  def popularity(self) -> np.ndarray:
    """Interactions with each candidate, `[n, K]`."""
    return self.taken[:, self.history.shape[1] :]

  @property
  def relative_lm_scores(self) -> np.ndarray:
    """The mid-trained model's log-probabilities minus their slate's mean, `[n, K]`. Raises ValueError where it was not asked."""
    if self.lm_scores is None:
      raise ValueError("lm_scores: the fact lm_score needs the log-probabilities of the mid-trained model")
    real = self.candidates >= 0
    mean = np.where(real, np.nan_to_num(self.lm_scores), 0).sum(axis=1, keepdims=True) / real.sum(axis=1, keepdims=True)
    return np.where(real, self.lm_scores - mean, 0)

  @functools.cached_property
  def next_counts(self) -> np.ndarray:
    """Transitions from each of the last two items to each candidate, `[n, 2, K]`."""
    return self.counts.transitions.count(self.past_in_log[:, -2:, None], self.own_in_log[:, None], self.deep_before)

  @functools.cached_property
  def leaf_next_counts(self) -> np.ndarray:
    """Transitions from the leaf category of each of the last two items to that of each candidate, `[n, 2, K]`."""
    last, own = self.items.leaf[self.history[:, -2:]], self.items.leaf[self.candidates]
    return self.counts.leaf_transitions.count(last[:, :, None], own[:, None], self.deep_before)

  def pairs(self, counts: TransitionCounts) -> np.ndarray:
    """Counts between each past item and each candidate, `[n, H, K]`."""
    return counts.count(self.past_in_log[:, :, None], self.own_in_log[:, None], self.deep_before)

  @functools.cached_property
  def near_pairs(self) -> np.ndarray:
    """How often each past item and each candidate stand within `WINDOW` steps of each other, `[n, H, K]`."""
    return self.pairs(self.counts.cooccurrence)

  @functools.cached_property
  def far_pairs(self) -> np.ndarray:
    """How often each past item and each candidate stand in one history, `[n, H, K]`."""
    return self.pairs(self.counts.far_cooccurrence)

  @functools.cached_property
  def same_leaf(self) -> np.ndarray:
    """Whether a past item and a candidate have the same leaf category, `[n, H, K]`."""
    return self._matches(self.items.leaf)

  @functools.cached_property
  def same_broad(self) -> np.ndarray:
    """Whether they have the same broadest category, `[n, H, K]`."""
    return self._matches(self.items.broad)

  @functools.cached_property
  def same_brand(self) -> np.ndarray:
    """Whether they have the same brand, `[n, H, K]`."""
    return self._matches(self.items.brand)

  def _matches(self, codes: np.ndarray) -> np.ndarray:
    """Code -1 matches nothing."""
    mine = codes[self.candidates]
    return (codes[self.history][:, :, None] == mine[:, None, :]) & (mine >= 0)[:, None, :]

  @property
  def similarities(self) -> np.ndarray:
    """Cosine of the text vectors of each past item and each candidate, `[n, H, K]`."""
    return self._cosines[:, :-1]

  @property
  def similarity_to_mean(self) -> np.ndarray:
    """Cosine of the mean past text vector and each candidate's, `[n, K]`."""
    return self._cosines[:, -1]

  @functools.cached_property
  def _cosines(self) -> np.ndarray:
    """Of each candidate's text vector to each past one and then to their mean, `[n, H + 1, K]`."""
    (n, width), units = self.candidates.shape, self.items.units
    found = np.empty((n, self.history.shape[1] + 1, width), np.float32)
    for part in _parts(n, (self.history.shape[1] + 1) * width * units.shape[1]):
      past, own = units[self.history[part]], units[self.candidates[part]]
      mean = past.sum(axis=1)
      mean /= np.maximum(np.sqrt((mean * mean).sum(axis=1, keepdims=True)), 1e-9)
      # The sum of products over the last axis, in the order that numpy has for one row, whatever the number of rows.
      np.sum(past[:, :, None] * own[:, None], axis=-1, out=found[part, :-1])
      np.sum(mean[:, None] * own, axis=-1, out=found[part, -1])
    return found

  @functools.cached_property
  def _shared(self) -> tuple[np.ndarray, np.ndarray]:
    """(candidate, counted through all slates, padding too; word) for each title word that a candidate shares with any past item."""
    items, size = self.items, len(self.items.rarity)
    owners, shared = [], []
    for part in _parts(len(self.candidates), size):
      past, own = self.history[part], self.candidates[part]
      place, word = items.words_of(past.ravel())
      is_past = np.zeros((len(past), size), bool)
      is_past[place // past.shape[1], word] = True
      place, word = items.words_of(own.ravel())
      hit = is_past[place // own.shape[1], word]
      owners.append(place[hit] + part.start * own.shape[1])
      shared.append(word[hit])
    return np.concatenate(owners), np.concatenate(shared)

  def shared_words(self, weights: np.ndarray) -> np.ndarray:
    """Summed `weights [W]` of the title words that a candidate shares with any past item, `[n, K]`."""
    owners, words = self._shared
    return np.bincount(owners, weights[words], self.candidates.size).reshape(self.candidates.shape)

  @functools.cached_property
  def price_difference(self) -> np.ndarray:
    """Log price minus the history's mean log price, `[n, K]`; 0 when either is unknown."""
    past = self.items.log_price[self.history]
    known = ~np.isnan(past)
    number = known.sum(axis=1)
    usual = np.where(known, past, 0).sum(axis=1) / np.where(number, number, np.nan)
    difference = self.items.log_price[self.candidates] - usual[:, None]
    return np.where(np.isnan(difference), 0, difference)

  @functools.cached_property
  def ages(self) -> np.ndarray:
    """log(1 + days) since each candidate was first and last taken before the request, `[n, 2, K]`; -1 if never, or unknown."""
    (n, width), before = self.candidates.shape, self.deep_before
    if before is None:
      return np.full((n, 2, width), -1.0)
    first_and_last = np.zeros((n, 2, width), np.int64)
    first_and_last[:, 1] = self.popularity - 1
    times = self.counts.popularity.time_of(self.own_in_log[:, None], first_and_last)
    known = (times > ALWAYS) & (times < before) & (before < NEVER)
    return np.where(known, np.log1p((np.where(known, before, 0) - np.where(known, times, 0)) / SECONDS_PER_DAY), -1.0)

  def recent(self, days: int) -> np.ndarray:
    """Interactions with each candidate within the `days` before the request (some of `RECENT`), `[n, K]`; all where it has no time."""
    return self._recent[:, RECENT.index(days)]

  @functools.cached_property
  def _recent(self) -> np.ndarray:
    """Those within each of `RECENT`, `[n, 3, K]`."""
    before = np.full((1, 1), NEVER) if self.before is None else self.before
    since = np.where(before < NEVER, before - np.asarray(RECENT) * SECONDS_PER_DAY, ALWAYS)
    return self.popularity[:, None] - self.counts.popularity.count(self.own_in_log[:, None], since[:, :, None])


def _parts(rows: int, numbers: int) -> Iterator[slice]:
  """Slates that are worked on at once, each with so many numbers; one part at least."""
  size = max(_AT_ONCE // max(numbers, 1), 1)
  return (slice(start, start + size) for start in range(0, max(rows, 1), size))


def _gap(slate: Slate) -> float:
  if slate.timestamp is None or slate.last_time is None:
    return -1.0
  return float(np.log1p((slate.timestamp - slate.last_time) / SECONDS_PER_DAY))


def times_before(slates: Sequence[Slate]) -> np.ndarray | None:
  """Request times `[n, 1]`, None when no slate has one; a single slate without a time counts the whole log."""
  if all(s.timestamp is None for s in slates):
    return None
  return np.asarray([NEVER if s.timestamp is None else s.timestamp for s in slates], np.int64)[:, None]
