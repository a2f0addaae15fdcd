"""`per_slate.npz`: every order's metrics of each test slate, so that runs can be pooled and compared in pairs afterwards."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.results import Measured, ResultsError


class PerSlate(NamedTuple):
  """Users `[n]` (text) and, by order, METRICS -> values `[n]`, in the order's first presentation."""

  users: np.ndarray
  orders: Mapping[str, Mapping[str, np.ndarray]]


def write_per_slate(path: str | os.PathLike, metrics: Measured, users: Sequence[str]) -> None:
  """Writes `users [n]`, `metrics [M]` (their names) and `orders/NAME [n, M]` of what `results.measure_orders` measured on n slates."""
  arrays = {"users": np.asarray(users, str), "metrics": np.asarray(METRICS)}
  for name, by_presentation in metrics.items():
    first = next(iter(by_presentation.values()))
    arrays[f"orders/{name}"] = np.stack([first[metric] for metric in METRICS], axis=1)
  np.savez_compressed(path, **arrays)


def load_per_slate(path: str | os.PathLike) -> PerSlate:
  """Reads what `write_per_slate` wrote; raises ResultsError for a file that is not there or has other metrics."""
  path = pathlib.Path(path)
  if not path.exists():
    raise ResultsError(f"{path}: there is no such file; run the evaluation stage first")
  with np.load(path, allow_pickle=False) as arrays:
    if tuple(arrays["metrics"]) != METRICS:
      raise ResultsError(f"{path}: holds {', '.join(arrays['metrics'])} instead of {', '.join(METRICS)}; make it again")
    orders = {
      name.removeprefix("orders/"): dict(zip(METRICS, arrays[name].T, strict=True)) for name in arrays if name.startswith("orders/")
    }
    return PerSlate(arrays["users"], orders)
