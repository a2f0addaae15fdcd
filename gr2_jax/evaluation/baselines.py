"""Classical rankers, each of which makes a ranking of every slate, int64 `[n, K]`: candidate indices, best first.

Ties keep the upstream order. Where slates differ in length, K is the longest and a shorter slate's padding indices come last, in
order, so a row is always a permutation of 0..K-1. `labels [n, K]` (from `data.slates.slate_labels`) carry -1 at the padding.
"""

from collections.abc import Sequence

import lightgbm
import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.table import candidate_counts, last_item_rows

ROUNDS = 500  # at most; early stopping on the validation slates decides
PATIENCE = 30
LEAVES = (7, 15, 31)  # the validation slates choose
PARAMETERS = {
  "objective": "lambdarank",
  "metric": "ndcg",
  "eval_at": [10],  # the whole slate: N@3 of some hundred slates is too noisy to stop on
  "learning_rate": 0.05,
  "min_data_in_leaf": 40,
  "lambda_l2": 1.0,
  "feature_fraction": 0.8,
  "bagging_fraction": 0.8,
  "bagging_freq": 1,
  "num_threads": 1,  # slate data is small: more threads gain nothing, and on a busy machine they wait for each other
  "deterministic": True,
  "force_row_wise": True,
  "verbosity": -1,
}


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


def fit_lambdamart(
  features: np.ndarray, labels: np.ndarray, validation_features: np.ndarray, validation_labels: np.ndarray, *, seed: int
) -> lightgbm.Booster:
  """LambdaMART (Burges 2010) on `features [n, K, F]` and `labels [n, K]`; its size is chosen, and its growth stopped, by N@10 of the
  validation slates.
  """
  train, validation = _dataset(features, labels), _dataset(validation_features, validation_labels)

  def fit(leaves: int) -> lightgbm.Booster:
    return lightgbm.train(
      {**PARAMETERS, "num_leaves": leaves, "seed": seed},
      train,
      num_boost_round=ROUNDS,
      valid_sets=[validation],
      callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )

  return max((fit(leaves) for leaves in LEAVES), key=lambda model: model.best_score["valid_0"]["ndcg@10"])


def describe_lambdamart(model: lightgbm.Booster) -> str:
  """How many trees of how many leaves the validation slates chose, over how many features."""
  return f"{model.best_iteration} trees of {model.params['num_leaves']} leaves on {model.num_feature()} features"


def lambdamart_ranking(model: lightgbm.Booster, features: np.ndarray, labels: np.ndarray, ranker: str = "lambdamart") -> np.ndarray:
  """The model's ranking; of `labels` only the padding is read. An error calls it `ranker`."""
  n, size, _ = features.shape
  scores = model.predict(features.reshape(n * size, -1), num_iteration=model.best_iteration, num_threads=PARAMETERS["num_threads"])
  return rank_by_scores(np.asarray(scores).reshape(n, size), labels, ranker)


def _dataset(features: np.ndarray, labels: np.ndarray) -> lightgbm.Dataset:
  """Candidates of all slates one below the other, without the padding; a slate is a query group."""
  real = labels >= 0
  return lightgbm.Dataset(features[real], labels[real], group=real.sum(axis=1), free_raw_data=True)
