"""How much each slate counts in a mean, as its log says (`Slate.weight`)."""

import numpy as np


def check_weights(weights: np.ndarray | None, count: int) -> np.ndarray:
  """Weights float64 `[count]`, ones for None; raises ValueError unless there is a finite, positive one for each slate."""
  if weights is None:
    return np.ones(count)
  weights = np.asarray(weights, np.float64)
  if weights.shape != (count,):
    raise ValueError(f"weights: {weights.shape} for {count} slates; give one for each")
  if not (np.isfinite(weights).all() and (weights > 0).all()):
    raise ValueError("weights: must be finite and above 0")
  return weights


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Mean over the slates of values `[n]` or `[n, M]` with weights `[n]`, in the values' precision; of weights of 1 it is `np.mean`."""
  weights = weights.astype(np.float64 if values.dtype == bool else values.dtype)
  mean: np.ndarray = (values * weights.reshape(-1, *[1] * (values.ndim - 1))).sum(axis=0) / weights.sum()
  return mean
