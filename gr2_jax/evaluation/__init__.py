"""Ranking metrics, paired intervals, signs of reward hacking, classical rankers, and the results of a run.

>>> import numpy as np
>>> from gr2_jax.evaluation import compute_metrics, paired_bootstrap
>>> labels = np.array([[0, 1, 0], [1, 0, 0]])
>>> better = compute_metrics(np.array([[1, 0, 2], [0, 1, 2]]), labels)["recall@1"]
>>> upstream = compute_metrics(np.array([[0, 1, 2], [0, 1, 2]]), labels)["recall@1"]
>>> better.tolist(), upstream.tolist()
([1.0, 1.0], [0.0, 1.0])
>>> float(paired_bootstrap(better, upstream, seed=0).delta[0])
0.5
"""

from gr2_jax.evaluation.diagnostics import compute_diagnostics, permutation_consistency
from gr2_jax.evaluation.metrics import METRICS, compute_metrics
from gr2_jax.evaluation.paired import paired_bootstrap, share_of_gain
from gr2_jax.evaluation.results import Answers, RankerAnswers, ResultsError, build_results, load_results

__all__ = [
  "METRICS",
  "Answers",
  "RankerAnswers",
  "ResultsError",
  "build_results",
  "compute_diagnostics",
  "compute_metrics",
  "load_results",
  "paired_bootstrap",
  "permutation_consistency",
  "share_of_gain",
]
