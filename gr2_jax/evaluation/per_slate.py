"""`per_slate.npz`: every ranker's metrics of each test slate, so that runs can be pooled and compared in pairs afterwards."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.results import Measured, ResultsError
from gr2_jax.evaluation.weights import check_weights


class PerSlate(NamedTuple):
  """Users `[n]` (text), how much each slate counts `[n]`, and by ranker METRICS, and whatever else was measured, -> values `[n]`, in the
  ranker's first presentation."""

  users: np.ndarray
  weights: np.ndarray
  rankers: Mapping[str, Mapping[str, np.ndarray]]


class Pooled(NamedTuple):
  """Metrics of some rankers on the slates of several seeds: values `[n]` by ranker and metric, clusters `SEED/USER` and weights `[n]`."""

  rankers: dict[str, dict[str, np.ndarray]]
  clusters: np.ndarray
  weights: np.ndarray


def write_per_slate(path: str | os.PathLike[str], metrics: Measured, users: Sequence[str], weights: np.ndarray | None = None) -> None:
  """Writes `users [n]`, `weights [n]` (ones by default), `metrics [M]` (their names) and `orders/NAME [n, M]` of what
  `results.measure_rankers` measured on n slates, with what was measured of all rankers besides."""
  first = {name: next(iter(by_presentation.values())) for name, by_presentation in metrics.items()}
  names = list(next(iter(first.values())))
  arrays: dict[str, Any] = {"users": np.asarray(users, str), "weights": check_weights(weights, len(users)), "metrics": np.asarray(names)}
  for name, of in first.items():
    arrays[f"orders/{name}"] = np.stack([of[metric] for metric in names], axis=1)
  np.savez_compressed(path, **arrays)


def load_per_slate(path: str | os.PathLike[str]) -> PerSlate:
  """Reads what `write_per_slate` wrote; raises ResultsError for a file that is not there or has other metrics."""
  path = pathlib.Path(path)
  if not path.exists():
    raise ResultsError(f"{path}: there is no such file; run the evaluation stage first")
  with np.load(path, allow_pickle=False) as arrays:
    names = tuple(map(str, arrays["metrics"]))
    if names[: len(METRICS)] != METRICS:
      raise ResultsError(f"{path}: holds {', '.join(arrays['metrics'])} instead of {', '.join(METRICS)}; make it again")
    rankers = {name.removeprefix("orders/"): dict(zip(names, arrays[name].T, strict=True)) for name in arrays if name.startswith("orders/")}
    users = arrays["users"]
    weights = arrays["weights"] if "weights" in arrays else np.ones(len(users))  # files of the versions without weights have none
    return PerSlate(users, weights, rankers)


def have_same_slates(one: PerSlate, other: PerSlate) -> bool:
  """Whether both were measured on slates of the same users in the same order, with the same weights."""
  return np.array_equal(one.users, other.users) and np.array_equal(one.weights, other.weights)


def pool_seeds(tested: Mapping[int, PerSlate], names: Iterable[str]) -> Pooled:
  """The named rankers' metrics, of those that all seeds have, on the slates of one seed after the other; users of two are two clusters."""

  def pool(name: str) -> dict[str, np.ndarray]:
    of_seeds = [of.rankers[name] for of in tested.values()]
    return {m: np.concatenate([of[m] for of in of_seeds]) for m in of_seeds[0] if all(m in of for of in of_seeds)}

  rankers = {name: pool(name) for name in names}
  clusters = np.array([f"{seed}/{user}" for seed, of in tested.items() for user in of.users])
  return Pooled(rankers, clusters, np.concatenate([of.weights for of in tested.values()]))
