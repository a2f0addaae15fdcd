"""`per_slate.npz`: every ranker's metrics of each test slate, so that runs can be pooled and compared in pairs afterwards."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.results import BASELINE, Measured, ResultsError
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
    return read_per_slate(dict(arrays), str(path))


def read_per_slate(arrays: Mapping[str, np.ndarray], where: str) -> PerSlate:
  """The arrays of such a file; raises ResultsError, naming `where` they come from, for other metrics and for arrays that do not go
  together."""
  names = tuple(map(str, arrays.get("metrics", ())))
  if names[: len(METRICS)] != METRICS:
    raise ResultsError(f"{where}: holds {', '.join(names) or 'no metrics'} instead of {', '.join(METRICS)}; make it again")
  users = arrays.get("users", np.zeros(0, str))
  weights = arrays.get("weights", np.ones(len(users)))  # files of the versions without weights have none
  orders = {name.removeprefix("orders/"): of for name, of in arrays.items() if name.startswith("orders/")}
  table = (len(users), len(names))
  fitting = users.ndim == 1 and len(users) and weights.shape == users.shape and all(of.shape == table for of in orders.values())
  numbers = all(np.issubdtype(of.dtype, np.number) and np.isfinite(of).all() for of in (weights, *orders.values()))
  if not (fitting and numbers and (weights > 0).all()):
    raise ResultsError(f"{where}: its users, weights and metrics do not go together, or hold something else than numbers; make it again")
  return PerSlate(users, weights, {name: dict(zip(names, of.T, strict=True)) for name, of in orders.items()})


def have_same_slates(one: PerSlate, other: PerSlate) -> bool:
  """Whether both were measured on the same slates: of the same users in the same order, weighed alike, and with upstream orders that do
  alike on each of them. Names of users alone do not tell: those of one synthetic market come again in the next."""
  if not (np.array_equal(one.users, other.users) and np.array_equal(one.weights, other.weights)):
    return False
  upstream = [of.rankers.get(BASELINE, {}) for of in (one, other)]
  return all(metric in of for of in upstream for metric in METRICS) and all(
    np.array_equal(upstream[0][metric], upstream[1][metric]) for metric in METRICS
  )


def pool_seeds(tested: Mapping[int, PerSlate], names: Iterable[str]) -> Pooled:
  """The named rankers' metrics, of those that all seeds have, on the slates of one seed after the other; users of two are two clusters."""

  def pool(name: str) -> dict[str, np.ndarray]:
    of_seeds = [of.rankers[name] for of in tested.values()]
    return {m: np.concatenate([of[m] for of in of_seeds]) for m in of_seeds[0] if all(m in of for of in of_seeds)}

  rankers = {name: pool(name) for name in names}
  clusters = np.array([f"{seed}/{user}" for seed, of in tested.items() for user in of.users])
  return Pooled(rankers, clusters, np.concatenate([of.weights for of in tested.values()]))
