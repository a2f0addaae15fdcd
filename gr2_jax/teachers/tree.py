"""Gradient-boosted trees over the evidence: LambdaMART, the strongest ranker that reads facts alone, and as a teacher out of fold.

Ties keep the upstream order. `labels [n, K]` (from `data.slates.slate_labels`) carry -1 at the padding.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import lightgbm
import numpy as np

from gr2_jax.data.slates import deal_folds

Fitted = TypeVar("Fitted")

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


def fit_lambdamart(
  features: np.ndarray,
  labels: np.ndarray,
  validation_features: np.ndarray,
  validation_labels: np.ndarray,
  *,
  seed: int,
  leaves: Sequence[int] = LEAVES,
) -> lightgbm.Booster:
  """LambdaMART (Burges 2010) on `features [n, K, F]` and `labels [n, K]`; its size is chosen from `leaves`, and its growth stopped, by
  N@10 of the validation slates.
  """

  def fit(number: int) -> lightgbm.Booster:
    return lightgbm.train(
      {**PARAMETERS, "num_leaves": number, "seed": seed},
      _dataset(features, labels),
      num_boost_round=ROUNDS,
      valid_sets=[_dataset(validation_features, validation_labels)],
      callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )

  return max(_at_once(fit, leaves), key=lambda model: model.best_score["valid_0"]["ndcg@10"])


def describe_lambdamart(model: lightgbm.Booster) -> str:
  """How many trees of how many leaves the validation slates chose, over how many features."""
  return f"{model.best_iteration} trees of {model.params['num_leaves']} leaves on {model.num_feature()} features"


def lambdamart_scores(model: lightgbm.Booster, features: np.ndarray) -> np.ndarray:
  """The model's scores `[n, K]` of candidates with `features [n, K, F]`."""
  n, size, _ = features.shape
  scores = model.predict(features.reshape(n * size, -1), num_iteration=model.best_iteration, num_threads=PARAMETERS["num_threads"])
  return np.asarray(scores).reshape(n, size)


@dataclasses.dataclass(frozen=True, eq=False)
class FoldTrees:
  """LambdaMART out of fold: `models`, one a fold, and `fold_of [n]` of the training slates; a fold's tree saw no slate of its users."""

  models: tuple[lightgbm.Booster, ...]
  fold_of: np.ndarray

  @classmethod
  def fit(
    cls,
    features: np.ndarray,
    labels: np.ndarray,
    users: Sequence[str],
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    *,
    folds: int,
    leaves: int,
    seed: int,
    on_fold: Callable[[int], None] = lambda done: None,
  ) -> "FoldTrees":
    """Trees of so many `leaves`, on all facts `[n, K, F]` of the training slates but those of a fold's users.

    `users [n]` are dealt to `folds` by `seed`; slates without a user (an empty name) each count as one of their own. `on_fold` hears how
    many folds are done. Raises DataError for fewer users than folds.
    """
    names = [user or f"\0{number}" for number, user in enumerate(users)]
    distinct, user_of = np.unique(names, return_inverse=True)
    fold_of = deal_folds(len(distinct), folds, seed)[user_of]

    def fit(fold: int) -> str:
      seen = fold_of != fold
      model = fit_lambdamart(features[seen], labels[seen], validation_features, validation_labels, seed=seed, leaves=(leaves,))
      return model.model_to_string(num_iteration=model.best_iteration)

    texts = []
    for text in _at_once(fit, range(folds)):
      texts.append(text)
      on_fold(len(texts))
    return cls.from_texts(texts, fold_of)

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Scores `[n, K]` of the training slates with facts `[n, K, F]`."""
    return self._predict(np.arange(len(features)), features)[..., 0]

  def contributions(self, indices: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What each fact adds to the scores of some training slates with facts `[m, K, F]`, `[m, K, F]`: Shapley values, which with one number
    the same for all candidates of a slate sum to the score (Lundberg et al. 2020)."""
    return self._predict(indices, features, pred_contrib=True)[..., :-1]

  def _predict(self, indices: np.ndarray, features: np.ndarray, **how: bool) -> np.ndarray:
    """What the trees say of training slates, `[m, K, ...]`, each asked of its fold's."""
    m, size, width = features.shape
    found = np.zeros((m, size, width + 1 if how else 1))
    for fold, model in enumerate(self.models):
      out = self.fold_of[indices] == fold
      if out.any():
        of_fold = model.predict(features[out].reshape(-1, width), num_threads=PARAMETERS["num_threads"], **how)
        found[out] = np.asarray(of_fold).reshape(-1, size, found.shape[-1])
    return found

  @property
  def texts(self) -> list[str]:
    """The models, for a file."""
    return [model.model_to_string() for model in self.models]

  @classmethod
  def from_texts(cls, texts: Sequence[str], fold_of: np.ndarray) -> "FoldTrees":
    """The trees whose models were written as `texts`."""
    return cls(tuple(lightgbm.Booster(model_str=text) for text in texts), fold_of)


def _at_once(fit: Callable[[int], Fitted], numbers: Sequence[int]) -> Iterator[Fitted]:
  """`fit` of each number, in their order, as many at once as there are processors; each fit has a thread, and takes it whole."""
  with ThreadPoolExecutor(min(len(numbers), os.cpu_count() or 1)) as pool:
    yield from pool.map(fit, numbers)


def _dataset(features: np.ndarray, labels: np.ndarray) -> lightgbm.Dataset:
  """Candidates of all slates one below the other, without the padding; a slate is a query group."""
  real = labels >= 0
  return lightgbm.Dataset(features[real], labels[real], group=real.sum(axis=1), free_raw_data=True)
