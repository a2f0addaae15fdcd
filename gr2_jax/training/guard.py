"""Updates that are no longer numbers are skipped and counted; a training with many of them, or some in a row, has failed."""

import math
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

# Share of a training's updates that may be skipped. A bad batch here and there does no harm; where every tenth update overflows, the
# learning rate is at the edge of what the model bears, and what was trained is not what the settings say.
MOST_SKIPPED = 0.1


class DivergedError(UserError):
  """A loss that is no number, or too many updates that had to be skipped; the message names the key of the learning rate."""


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


def check_finite(loss: float, when: str, key: str) -> None:
  """Raises DivergedError, with the dotted config key of the learning rate, for a loss that is no number where nothing is skipped."""
  if not math.isfinite(loss):
    raise DivergedError(f"the loss is {loss} {when}; lower --config.{key}")


class SkipCounter:
  """Counts skipped updates by the metric of `skip_if_not_finite`: in a row, and as a share of all.

  In a row, since when every batch fails the parameters are at fault; that count begins at 0 when a run is continued.
  """

  def __init__(self, limit: int, steps: int, directory: pathlib.Path, section: str) -> None:
    """`limit`: steps in a row; `steps`: of the whole training; `section`: the dotted config key of its settings."""
    self.total = 0.0  # updates skipped, as steps: a step of several updates counts by its share
    self._row = 0
    self._limit, self._steps = limit, steps
    self._directory, self._section = directory, section

  def add(self, step: int, batch: Any, metrics: Mapping[str, Metric]) -> None:
    """Raises DivergedError at the limit, and when more than MOST_SKIPPED of all steps are skipped already, whatever the rest will do.

    This process's share of the batch is saved in the directory as `.npz` then.
    """
    skipped = metrics["skipped"]
    self._row = self._row + 1 if skipped.sum > 0 else 0
    self.total += float(skipped.sum) / float(skipped.count)
    if self._row >= self._limit:
      where = f"in {self._row} steps in a row, up to step {step}"
    elif self.total > MOST_SKIPPED * self._steps:
      where = f"in {self.total:.3g} of the first {step} steps, which is more than {MOST_SKIPPED:.0%} of all {self._steps}"
    else:
      return
    path = self._directory / f"skipped_step{step}_process{jax.process_index()}.npz"
    save_arrays(path, batch)
    raise DivergedError(
      f"the loss or its gradient was not finite {where}, and the updates were skipped; the batch of step {step} is in {path}; lower "
      f"--config.{self._section}.optimizer.learning_rate or its clip_norm, or raise its warmup_steps"
    )


def save_arrays(path: pathlib.Path, tree: Any) -> None:
  """Writes a pytree's arrays to an `.npz` file, each under its path in the tree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = {jax.tree_util.keystr(place, simple=True, separator="."): np.asarray(leaf) for place, leaf in leaves}
  np.savez_compressed(path, **arrays)
