"""A ranker without any training: what followed a user's latest items in other histories, and whose text is like theirs.

score(history, item) = sum over the history, each step back weighing half, of
  (times taken right after + half the times taken within five steps) / root of the past item's popularity + .5 x cosine of the texts.
A graph of the log's transitions with text, as arXiv 2605.07125 has it for whole catalogues.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.slates import latest_rows, pad_rows
from gr2_jax.evidence.counts import Interactions, ItemCounts, TransitionCounts
from gr2_jax.evidence.items import unit_vectors
from gr2_jax.evidence.requests import STEPS, times_before

_DECAY = 0.5  # weight of each step further back in a history
_FOLLOWERS = 0.5  # weight of a follower within `STEPS`; the one right after counts among them too
_TEXT = 0.5
_PAST = 20  # the latest of a history that are read: the twentieth weighs a millionth


@dataclasses.dataclass(frozen=True, eq=False)
class TransitionGraph:
  """What the ranker counts, of N items, and their text vectors of length 1, `units [N, D]`."""

  transitions: TransitionCounts
  followers: TransitionCounts
  popularity: ItemCounts
  units: np.ndarray

  @classmethod
  def fit(cls, histories: Sequence[History], catalogue: Catalogue, vectors: np.ndarray) -> "TransitionGraph":
    """Counts `histories`; `vectors [N, D]` are of the items' text. Raises DataError for an unknown item or a wrong number of vectors."""
    interactions, size = Interactions.of(histories, catalogue), len(catalogue)
    return cls(
      TransitionCounts.none(size).add(interactions),
      TransitionCounts.none(size, window=STEPS).add(interactions),
      ItemCounts.none(size).add(interactions),
      unit_vectors(catalogue, vectors),
    )

  def catalogue_scores(self, histories: np.ndarray) -> np.ndarray:
    """Of every item after histories `[B, H]` (catalogue rows, -1 = padding at the end), float32 `[B, N]`; all counted events enter."""
    past = _latest(histories)
    which, step = np.nonzero(past >= 0)
    weights = sparse.csr_matrix((_weights(past)[which, step], (which, past[which, step])), (len(past), len(self.units)))
    return np.asarray((weights @ self._edges).todense() + _TEXT * ((weights @ self.units) @ self.units.T), np.float32)

  def scores(self, histories: np.ndarray, candidates: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Of `candidates [B, K]` after `histories [B, H]`, `[B, K]`; catalogue rows with -1 behind them, whose scores are 0.

    Only events strictly before `before [B, 1]` (Unix seconds) enter, or all (None).
    """
    past = _latest(histories)
    source, target, deep = past[:, :, None], candidates[:, None], None if before is None else before[:, :, None]
    followed = self.transitions.count(source, target, deep) + _FOLLOWERS * self.followers.count(source, target, deep)
    edges = followed / np.sqrt(np.maximum(self.popularity.count(source, deep), 1))
    weights = _weights(past)
    profile = np.einsum("bh,bhd->bd", weights, self.units[past])
    similar = np.einsum("bd,bkd->bk", profile, self.units[candidates])
    return np.where(candidates >= 0, np.einsum("bh,bhk->bk", weights, edges) + _TEXT * similar, 0.0)

  def slate_scores(self, slates: Sequence[Slate], catalogue: Catalogue) -> np.ndarray:
    """Of each candidate `[n, K]`, from events strictly before the slate's timestamp; 0 where a slate has fewer than K."""
    past, candidates = (
      pad_rows([catalogue.to_rows(items) for items in lines]).astype(np.int64)
      for lines in ([slate.history for slate in slates], [slate.candidates for slate in slates])
    )
    return self.scores(past, candidates, times_before(slates))

  @functools.cached_property
  def _edges(self) -> sparse.csr_matrix:
    """From each item to each, over the root of the former's popularity."""
    followed = self.transitions.matrix() + _FOLLOWERS * self.followers.matrix()
    taken = self.popularity.count(np.arange(len(self.units)))
    return sparse.diags(1 / np.sqrt(np.maximum(taken, 1))) @ followed


def _latest(histories: np.ndarray) -> np.ndarray:
  """The last items of each history, -1 behind them."""
  return latest_rows(histories, _PAST).astype(np.int64)


def _weights(past: np.ndarray) -> np.ndarray:
  """Of each item of `past [B, H]` with -1 behind it; 0 there."""
  back = (past >= 0).sum(axis=1, keepdims=True) - 1 - np.arange(past.shape[1])
  return np.where(past >= 0, _DECAY ** np.maximum(back, 0.0), 0.0)
