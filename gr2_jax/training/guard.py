"""Updates that are no longer numbers are skipped and counted; a run in which they follow each other is stopped."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.errors import UserError
from gr2_jax.training.metric import Metric

# Other metrics may be infinite for good reasons.
_WATCHED = ("loss", "grad_norm")


class DivergedError(UserError):
  """Too many updates in a row had to be skipped; the message names the steps and the file with the last one's batch."""


def skip_if_not_finite(old: Any, new: Any, metrics: Mapping[str, Metric]) -> tuple[Any, dict[str, Metric]]:
  """`new`, or `old` bit for bit where the metrics `loss` or `grad_norm` are NaN or infinite; for use inside a compiled update.

  `old, new`: the same pytree (parameters and optimizer state) before and after a gradient step. Adds the metric `skipped`, 1 or 0 a
  step; a skipped step's other metrics count nowhere, so no mean turns into NaN. Every device and host decides alike, since the two
  metrics are already sums over all of them.
  """
  finite = jnp.all(jnp.array([jnp.isfinite(metrics[name].sum) for name in _WATCHED]))

  def choose(x: Any, y: Any) -> jax.Array:
    return jnp.where(finite, x, y)

  metrics = {name: Metric(choose(metric.sum, 0.0), choose(metric.count, 0.0)) for name, metric in metrics.items()}
  skipped = Metric(1.0 - finite.astype(jnp.float32), jnp.ones(()))
  return jax.tree.map(choose, new, old), metrics | {"skipped": skipped}


class SkipCounter:
  """Counts steps in a row with a skipped update, from the metric of `skip_if_not_finite`; begins at 0 when a run is continued.

  In a row, not in all: single bad batches do no harm, but when every batch fails the parameters are at fault.
  """

  def __init__(self, limit: int, directory: pathlib.Path) -> None:
    self._limit = limit
    self._directory = directory
    self._row = 0

  def add(self, step: int, batch: Any, metrics: Mapping[str, Metric]) -> None:
    """Raises DivergedError at the limit, with this process's share of the batch saved in the directory as `.npz`."""
    self._row = self._row + 1 if metrics["skipped"].sum > 0 else 0
    if self._row < self._limit:
      return
    path = self._directory / f"skipped_step{step}_process{jax.process_index()}.npz"
    save_arrays(path, batch)
    raise DivergedError(
      f"the loss or its gradient was not finite in {self._row} steps in a row, up to step {step}, and their updates were skipped; "
      f"the batch of step {step} is in {path}; lower the learning rate or clip_norm, or warm up longer"
    )


def save_arrays(path: pathlib.Path, tree: Any) -> None:
  """Writes a pytree's arrays to an `.npz` file, each under its path in the tree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = {jax.tree_util.keystr(place, simple=True, separator="."): np.asarray(leaf) for place, leaf in leaves}
  np.savez_compressed(path, **arrays)
