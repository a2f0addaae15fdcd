"""Which facts carry a scored policy: what its order loses when one fact is dealt anew among the candidates (Breiman 2001)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr2_jax.evaluation.baselines import rank_by_scores
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.evaluation.paired import paired_bootstrap

METRIC = "ndcg@3"


def permutation_importance(
  score: Callable[[np.ndarray], np.ndarray],
  facts: np.ndarray,
  names: Sequence[str],
  labels: np.ndarray,
  *,
  clusters: Sequence[str],
  weights: np.ndarray,
  seed: int,
  resamples: int,
) -> dict[str, dict[str, Any]]:
  """By fact, the largest first: the mean loss of METRIC, `delta`, and its paired 95 % interval `ci95`.

  `score(facts [n, K, F]) -> scores [n, K]`. Values are dealt among all candidates of all slates, so that a fact that is the same for a
  slate's candidates counts by what it does to others. Facts that say the same lose little one by one. `clusters [n]`: slates that are
  drawn together, by name; at least two.
  """
  real = labels >= 0
  rng = np.random.default_rng(seed)

  def quality(values: np.ndarray) -> np.ndarray:
    return compute_metrics(rank_by_scores(score(values), labels, "the policy"), labels)[METRIC]

  whole, without = quality(facts), []
  for column in range(len(names)):
    dealt = facts.copy()
    dealt[real, column] = rng.permutation(facts[real, column])
    without.append(quality(dealt))
  base = np.stack(without, axis=1)
  of = paired_bootstrap(
    np.repeat(whole[:, None], len(names), axis=1), base, seed=seed, resamples=resamples, clusters=np.asarray(clusters), weights=weights
  )
  order = np.argsort(-of.delta, kind="stable")
  return {names[i]: {"delta": float(of.delta[i]), "ci95": [float(of.delta_low[i]), float(of.delta_high[i])]} for i in order}
