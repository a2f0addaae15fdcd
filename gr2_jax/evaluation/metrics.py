"""Ranking metrics of each slate under one ranker."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.kernels.rank_reward import api
from gr2_jax.kernels.rank_reward.api import RankRewardOptions
from gr2_jax.numerics import filled_batches

METRICS = ("recall@1", "recall@3", "recall@5", "ndcg@3", "ndcg@5", "ndcg@10", "mrr", "auc")
_CUTOFFS = (1, 3, 5, 10)
_BLOCK = 1 << 24  # pairs of candidates looked at in one call; bounds the memory of long slates


@functools.partial(jax.jit, static_argnames="gain")
def _metrics_of_block(rankings: jax.Array, labels: jax.Array, gain: Literal["exponential", "linear"]) -> dict[str, jax.Array]:
  options = RankRewardOptions(cutoffs=_CUTOFFS, gain=gain)
  terms = api.rank_terms(rankings, labels, mask=labels >= 0, options=options)
  at = {f"recall@{k}": terms.recall[:, i] for i, k in enumerate(_CUTOFFS)} | {f"ndcg@{k}": terms.ndcg[:, i] for i, k in enumerate(_CUTOFFS)}
  at |= {"mrr": terms.mrr, "auc": terms.auc}
  return {name: at[name] for name in METRICS}


def compute_metrics(
  rankings: np.ndarray, labels: np.ndarray, gain: Literal["exponential", "linear"] = "exponential"
) -> dict[str, np.ndarray]:
  """METRICS of each slate, float64 `[n]`, from rankings `[n, K]` and labels `[n, K]` (by candidate; -1 at padding).

  An invalid answer (-1, or no full permutation) scores 0 in every metric: it is not repaired, and not replaced by the
  upstream order either. recall@k is the share of a slate's positives among the first k; ndcg and mrr are as in rax; auc is Eq 5.
  Raises ValueError for shapes that differ, no slates, and labels that are not finite.
  """
  rankings, labels = np.asarray(rankings), np.asarray(labels)
  if rankings.shape != labels.shape or rankings.ndim != 2:
    raise ValueError(f"rankings {rankings.shape} and labels {labels.shape} must both be [slates, candidates]")
  if not len(labels):
    raise ValueError("rankings: there is no slate to evaluate; check the split")
  if not np.isfinite(labels).all():
    raise ValueError("labels: hold a NaN or infinity; use 0 none, 1 click, 2 conversion, -1 padding")
  rows = min(len(labels), max(_BLOCK // labels.shape[1] ** 2, 1))
  blocks = []
  for chosen in filled_batches(len(labels), rows):
    blocks.append(jax.device_get(_metrics_of_block(jnp.asarray(rankings[chosen]), jnp.asarray(labels[chosen]), gain)))
  return {name: np.concatenate([b[name] for b in blocks])[: len(labels)].astype(np.float64) for name in METRICS}
