"""Slates as arrays, with the log that their facts are counted in."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.slates import pad_rows
from gr2_jax.data.splits import SECONDS_PER_DAY
from gr2_jax.evidence.counts import ALWAYS, NEVER, ItemCounts, TransitionCounts, index_names
from gr2_jax.evidence.items import ItemArrays

WINDOW = 3  # steps within which two items of one history count as co-occurring
STEPS = 5  # within which an item counts as following another, farther ones weighing less
FAR = 50  # steps within which two items of one history count as co-occurring at any distance: a robot's history has thousands
_ROWS = 256  # slates whose words are compared at once: the past words again for each candidate would not fit for large logs


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
    leaves = index_names([item.leaf or None for item in catalogue.items])[1]
    return cls(
      popularity=ItemCounts.fit(histories, catalogue),
      transitions=TransitionCounts.fit(histories, catalogue),
      followers=TransitionCounts.fit(histories, catalogue, window=STEPS),
      cooccurrence=TransitionCounts.fit(histories, catalogue, window=WINDOW, directed=False),
      far_cooccurrence=TransitionCounts.fit(histories, catalogue, window=FAR, directed=False),
      leaf_transitions=TransitionCounts.fit(histories, catalogue, groups=leaves),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
  """n slates of at most K candidates and H past items.

  `history [n, H]`, `candidates [n, K]`: catalogue rows; padding is -1, before the history and behind the candidates. `before [n, 1]`: Unix
  seconds of the request, None where no slate has a time. `gap [n, 1]`: log(1 + days) since the user's last item, -1 where unknown.
  `upstream_scores [n, K]`: 0 where there are none. `lm_scores [n, K]`: the mid-trained model's log-probabilities, where it was asked. What
  several facts read is computed once.
  """

  history: np.ndarray
  candidates: np.ndarray
  before: np.ndarray | None
  gap: np.ndarray
  upstream_scores: np.ndarray
  counts: LogCounts
  items: ItemArrays
  lm_scores: np.ndarray | None = None

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
  ) -> "Requests":
    """The arrays of slates; raises DataError for an unknown item."""
    history = pad_rows([catalogue.to_rows(s.history[-max_history:]) for s in slates], left=True).astype(np.int64)
    if not history.shape[1]:  # in serving alone: facts read a last item, be it none
      history = np.full((len(slates), 1), -1)
    return cls(
      history=history,
      candidates=pad_rows([catalogue.to_rows(s.candidates) for s in slates]).astype(np.int64),
      before=times_before(slates),
      gap=np.asarray([_gap(s) for s in slates])[:, None],
      upstream_scores=pad_rows([s.upstream_scores or (0.0,) * len(s.candidates) for s in slates], fill=0.0),
      counts=counts,
      items=items,
      lm_scores=lm_scores,
    )

  @property
  def lengths(self) -> np.ndarray:
    """Items of the history that are read, `[n, 1]`."""
    return (self.history >= 0).sum(axis=1)[:, None]

  @property
  def past(self) -> np.ndarray:
    """Where there is a past item, `[n, H, 1]`."""
    return (self.history >= 0)[:, :, None]

  @property
  def last(self) -> np.ndarray:
    """The last past item, `[n, 1]`."""
    return self.history[:, -1:]

  @property
  def second(self) -> np.ndarray:
    """The one before it, `[n, 1]`; -1 where there is none."""
    return self.history[:, -2:-1] if self.history.shape[1] > 1 else np.full_like(self.last, -1)

  @property
  def deep_before(self) -> np.ndarray | None:
    """`before` for arrays `[n, H, K]`."""
    return None if self.before is None else self.before[:, :, None]

  def decay(self, rate: float) -> np.ndarray:
    """`rate` to the power of the steps from the last item, `[1, H, 1]`."""
    return (rate ** np.arange(self.history.shape[1])[::-1])[None, :, None]

  @functools.cached_property
  def popularity(self) -> np.ndarray:
    """Interactions with each candidate, `[n, K]`."""
    return self.counts.popularity.count(self.candidates, self.before)

  @property
  def relative_lm_scores(self) -> np.ndarray:
    """The mid-trained model's log-probabilities minus their slate's mean, `[n, K]`. Raises ValueError where it was not asked."""
    if self.lm_scores is None:
      raise ValueError("lm_scores: the fact lm_score needs the log-probabilities of the mid-trained model")
    real = self.candidates >= 0
    mean = np.where(real, np.nan_to_num(self.lm_scores), 0).sum(axis=1, keepdims=True) / real.sum(axis=1, keepdims=True)
    return np.where(real, self.lm_scores - mean, 0)

  @functools.cached_property
  def next_last(self) -> np.ndarray:
    """Transitions from the last item to each candidate, `[n, K]`."""
    return self.counts.transitions.count(self.last, self.candidates, self.before)

  def pairs(self, counts: TransitionCounts) -> np.ndarray:
    """Counts between each past item and each candidate, `[n, H, K]`."""
    return counts.count(self.history[:, :, None], self.candidates[:, None, :], self.deep_before)

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

  def leaf_counts(self, sources: np.ndarray) -> np.ndarray:
    """Transitions from the leaf category of `sources [n, 1]` to that of each candidate, `[n, K]`."""
    leaf = self.items.leaf
    return self.counts.leaf_transitions.count(leaf[sources], leaf[self.candidates], self.before)

  @functools.cached_property
  def similarities(self) -> np.ndarray:
    """Cosine of the text vectors of each past item and each candidate, `[n, H, K]`."""
    units = self.items.units
    out = np.zeros((*self.history.shape, self.candidates.shape[1]), np.float32)
    for k, column in enumerate(self.candidates.T):
      mine = units[column]
      for h, past in enumerate(self.history.T):  # a pair of columns at a time: [n, H, D] would not fit for large logs
        out[:, h, k] = np.sum(units[past] * mine, axis=1)
    return out

  @functools.cached_property
  def similarity_to_mean(self) -> np.ndarray:
    """Cosine of the mean past text vector and each candidate's, `[n, K]`."""
    units = self.items.units
    mean = np.zeros((len(self.history), units.shape[1]), np.float32)
    for column in self.history.T:
      mean += units[column]
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
    return np.stack([np.sum(units[column] * mean, axis=1) for column in self.candidates.T], axis=1)

  @functools.cached_property
  def past_words(self) -> sparse.csr_matrix:
    """1 for each word of any past title, sparse `[n, W]`."""
    words = self.items.words
    known = sparse.csr_matrix(
      (np.ones(self.history.size), (np.repeat(np.arange(len(self.history)), self.history.shape[1]), self.history.ravel() % words.shape[0])),
      shape=(len(self.history), words.shape[0]),
    )
    return (known @ words).sign()

  @functools.cached_property
  def shared(self) -> sparse.csr_matrix:
    """1 for each title word that a candidate shares with any past item, sparse `[n * K, W]`."""
    found, width = [], self.candidates.shape[1]
    for start in range(0, len(self.candidates), _ROWS):
      part, past = self.candidates[start : start + _ROWS], self.past_words[start : start + _ROWS]
      found.append(self.items.words[part.ravel()].multiply(past[np.repeat(np.arange(len(part)), width)]))
    return sparse.vstack(found, format="csr")

  def shared_words(self, weights: np.ndarray) -> np.ndarray:
    """Summed `weights [W]` of the title words that a candidate shares with any past item, `[n, K]`."""
    return np.asarray(self.shared @ weights).reshape(self.candidates.shape)

  @functools.cached_property
  def price_difference(self) -> np.ndarray:
    """Log price minus the history's mean log price, `[n, K]`; 0 when either is unknown."""
    past = self.items.log_price[self.history]
    known = ~np.isnan(past)
    usual = np.where(known, past, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return np.nan_to_num(self.items.log_price[self.candidates] - usual[:, None])

  def days_since(self, times: np.ndarray) -> np.ndarray:
    """log(1 + days) from `times [n, K]` to the request; -1 where either is unknown or the time is not before the request."""
    if self.before is None:
      return np.full(times.shape, -1.0)
    known = (times > ALWAYS) & (times < self.before) & (self.before < NEVER)
    return np.where(known, np.log1p((np.where(known, self.before, 0) - np.where(known, times, 0)) / SECONDS_PER_DAY), -1.0)

  def recent(self, days: int) -> np.ndarray:
    """Interactions with each candidate within the `days` before the request, `[n, K]`; all that are past for a request without a time."""
    if self.before is None:
      return self.popularity
    timed = self.before < NEVER
    since = np.where(timed, self.before - days * SECONDS_PER_DAY, ALWAYS)
    return self.popularity - self.counts.popularity.count(self.candidates, since)


def _gap(slate: Slate) -> float:
  if slate.timestamp is None or slate.last_time is None:
    return -1.0
  return float(np.log1p((slate.timestamp - slate.last_time) / SECONDS_PER_DAY))


def times_before(slates: Sequence[Slate]) -> np.ndarray | None:
  """Request times `[n, 1]`, None when no slate has one; a single slate without a time counts the whole log."""
  if all(s.timestamp is None for s in slates):
    return None
  return np.asarray([NEVER if s.timestamp is None else s.timestamp for s in slates], np.int64)[:, None]
