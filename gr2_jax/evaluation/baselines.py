"""Classical rankers, each of which makes a ranking of every slate, int64 `[n, K]`: candidate indices, best first.

Ties keep the upstream order. Where slates differ in length, K is the longest and a shorter slate's padding indices come last, in
order, so a row is always a permutation of 0..K-1. `labels [n, K]` (from `data.slates.slate_labels`) carry -1 at the padding.
"""

from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.table import candidate_counts, last_item_rows


def rank_by_scores(scores: np.ndarray, labels: np.ndarray, ranker: str) -> np.ndarray:
  """Rankings by `scores [n, K]`, highest first, ties by upstream rank; padding (label -1) last.

  Raises DataError that names the `ranker` where one of them is NaN.
  """
  real = labels >= 0
  wrong = np.count_nonzero(np.isnan(scores[real]))
  if wrong:
    raise DataError(
      f"{ranker}: {wrong:,} of its {np.count_nonzero(real):,} scores are NaN, which have no place in an order; check its inputs"
    )
  return np.argsort(-np.where(real, scores, -np.inf), axis=1, kind="stable")


def upstream_ranking(labels: np.ndarray) -> np.ndarray:
  """The candidates as they came, in the order of the upstream ranker."""
  return np.tile(np.arange(labels.shape[1]), (len(labels), 1))


def random_ranking(labels: np.ndarray, seed: int) -> np.ndarray:
  """A uniform permutation of each slate."""
  return rank_by_scores(np.random.default_rng(seed).random(labels.shape), labels, "random")


def ideal_ranking(labels: np.ndarray) -> np.ndarray:
  """The ranking that none can beat: by label."""
  return rank_by_scores(labels, labels, "oracle")


def utility_ranking(utilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The oracle's ranking: by true utility `[n, K]`, which knows everything but the chance in the choice."""
  return rank_by_scores(utilities, labels, "oracle")


def popularity_ranking(slates: Sequence[Slate], catalogue: Catalogue, popularity: ItemCounts) -> np.ndarray:
  """By interactions before the request."""
  return rank_by_scores(candidate_counts(slates, catalogue, popularity), slate_labels(slates), "popularity")


def last_transition_ranking(slates: Sequence[Slate], catalogue: Catalogue, transitions: TransitionCounts) -> np.ndarray:
  """By how often the candidate followed the user's last item before the request."""
  counts = candidate_counts(slates, catalogue, transitions, last_item_rows(slates, catalogue))
  return rank_by_scores(counts, slate_labels(slates), "last_transition")
