"""The loop of every trained stage: batch, update, log, save; and it goes on where an earlier session stopped."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.metric import Metric
from gr2_jax.training.progress import Task
from gr2_jax.training.writers import MetricWriter

Metrics = Mapping[str, Metric]

# A NaN here means that the parameters are lost; other metrics may be infinite for good reasons.
GUARDED = ("loss", "grad_norm")


class DivergedError(RuntimeError):
  """The loss or its gradient is no longer a number; the message names the step."""


class Position(Protocol):
  """A place in the data that can be saved: a Grain iterator is one."""

  def get_state(self) -> Any:
    """The place, as JSON."""

  def set_state(self, state: Any) -> None:
    """Goes to a place that `get_state` gave."""


def fit(
  state: Any,
  update: Callable[[Any, Any], tuple[Any, Metrics]],
  get_batch: Callable[[Any], tuple[Any, Metrics]],
  *,
  position: Position,
  steps: int,
  checkpointer: Checkpointer,
  writer: MetricWriter,
  progress: Task,
  save_every: int,
  log_every: int,
  stop: StopSignal,
  on_step: Callable[[int, Any], None] | None = None,
) -> Any:
  """Runs `update` until `steps` calls have been made, counting those of earlier sessions, and returns the final state.

  `state`: where a run that has no checkpoint yet begins; its shapes and shardings are those to restore to.
  `get_batch(state) -> (batch, metrics)`: may roll out with the state; everything that it draws must follow from
  `position` and `state.step`, then a resumed run equals an uninterrupted one bit for bit.
  `on_step(step, state)`: called after each step with the number of steps done.
  Metrics stay on the device until they are logged or saved, so the host never waits for a step.

  Raises Interrupted after a stop signal, with everything saved, and DivergedError at the first loss that is no number; the
  metrics up to it are written then, the state is not saved.
  """
  restored = checkpointer.restore_latest(jax.tree.map(_abstract, state))
  step = 0
  if restored is not None:
    state, data_state, step = restored
    position.set_state(data_state)
  writer.resume(step)
  progress.start_from(step)
  progress.update(step)
  saved = step if restored is not None else None
  pending: list[tuple[int, Metrics]] = []
  while step < steps:
    batch, drawn = get_batch(state)
    state, metrics = update(state, batch)
    step += 1
    pending.append((step, {**drawn, **metrics}))
    if on_step is not None:
      on_step(step, state)
    stopping = _stop_agreed(stop, step, log_every)
    saving = stopping or step == steps or step % save_every == 0
    if saving or step % log_every == 0:
      _write_metrics(pending, writer, progress)
      pending = []
    else:
      progress.update(step)
    if saving:
      checkpointer.save(step, state, position.get_state())
      saved = step
    if stopping and step < steps:
      checkpointer.close()
      raise Interrupted(stop.signum)
  if saved != step:
    checkpointer.save(step, state, position.get_state())
  checkpointer.close()
  return state


def _write_metrics(pending: list[tuple[int, Metrics]], writer: MetricWriter, progress: Task) -> None:
  """Means since the last line, under the number of the last step; raises DivergedError once they are written."""
  fetched = [(step, jax.device_get(metrics)) for step, metrics in pending]
  last = fetched[-1][0]
  names = dict.fromkeys(name for _, metrics in fetched for name in metrics)
  values = {}
  for name in names:
    metrics = [m[name] for _, m in fetched if name in m]
    total, count = (np.sum([np.asarray(getattr(m, part), np.float64) for m in metrics]) for part in ("sum", "count"))
    if count != 0:  # a mean over nothing is not 0, so it gets no line
      values[name] = float(total / count)
  writer.write(last, values)
  progress.update(last, values)
  for step, metrics in fetched:
    for name in GUARDED:
      if name in metrics and not np.isfinite(metrics[name].sum):
        raise DivergedError(
          f"{name} is {float(metrics[name].sum)} at step {step}; lower the learning rate or clip_norm, or warm up longer. "
          "The state was not saved: the last checkpoint is from before"
        )


def _stop_agreed(stop: StopSignal, step: int, log_every: int) -> bool:
  """Whether to stop after this step; many processes decide together, at logged steps, since saving takes all of them."""
  if jax.process_count() == 1:
    return stop.requested
  if step % log_every:
    return False
  heard = int(np.max(multihost_utils.process_allgather(np.int32(stop.signum or 0))))
  stop.signum = heard or None
  return heard != 0


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
