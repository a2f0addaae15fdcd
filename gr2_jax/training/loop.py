"""The loop of every trained stage: batch, update, log, save; and it goes on where an earlier session stopped."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.guard import SkipCounter
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.metric import Metric
from gr2_jax.training.progress import Task
from gr2_jax.training.writers import MetricWriter

Metrics = Mapping[str, Metric]


class StepResult(NamedTuple):
  """What a step leaves: the new state, the batch that it learnt from, what this process measured while it made the batch, and the update's
  metrics, which may still be on the device.
  """

  state: Any
  batch: Any
  drawn: Metrics
  metrics: Metrics


def batch_step(update: Callable[[Any, Any], tuple[Any, Metrics]], get_batch: Callable[[Any], Any]) -> Callable[[Any], StepResult]:
  """The step of `fit` that updates on `get_batch(state)`."""

  def step(state: Any) -> StepResult:
    batch = get_batch(state)
    new, metrics = update(state, batch)
    return StepResult(new, batch, {}, metrics)

  return step


class _Step(NamedTuple):
  """A step whose metrics may still be on the device; `drawn` is what this process measured while it made the batch."""

  number: int
  batch: Any
  drawn: Metrics
  metrics: Metrics


class Position(Protocol):
  """A place in the data that can be saved: a Grain iterator is one."""

  def get_state(self) -> Any:
    """The place, as JSON."""

  def set_state(self, state: Any) -> None:
    """Goes to a place that `get_state` gave."""


def fit(
  state: Any,
  step: Callable[[Any], StepResult],
  *,
  position: Position,
  steps: int,
  checkpointer: Checkpointer,
  writer: MetricWriter,
  progress: Task,
  save_every: int,
  log_every: int,
  max_skips: int,
  stop: StopSignal,
  section: str,
  on_step: Callable[[int, Any], None] | None = None,
) -> Any:
  """Runs `step` until `steps` calls have been made, counting those of earlier sessions, and returns the final state.

  `state`: where a run that has no checkpoint yet begins; its shapes and shardings are those to restore to.
  `step(state) -> StepResult`: may roll out with the state; everything that it draws must follow from `position` and `state.step`, then a
  resumed run equals an uninterrupted one bit for bit. The metrics that it drew are added up over processes: each is of this process's
  share, or the same in all of them, which changes no mean. Its update passes through `guard.skip_if_not_finite`, whose metric `skipped` is
  watched here.
  `max_skips`: steps in a row with a skipped update after which the run stops. `section`: the dotted config key of the training's settings,
  for what is said then.
  `on_step(step, state)`: called after each step with the number of steps done.
  Metrics stay on the device until they are logged or saved, so the host never waits for a step.

  Raises Interrupted after a stop signal, with everything saved, and DivergedError after `max_skips` skipped updates in a row or too many
  in all (see `guard.SkipCounter`), noticed when metrics are written; the batch of the last one lies beside the checkpoints then.
  """
  restored = checkpointer.restore_latest(jax.tree.map(_abstract, state))
  skips = SkipCounter(max_skips, steps, checkpointer.directory.parent, section)
  done = 0
  if restored is not None:
    state, place, done = restored
    position.set_state(place["position"])
    skips.total = place["skipped"]
  writer.resume(done)
  progress.start_from(done)
  saved = done if restored is not None else None
  pending: list[_Step] = []
  while done < steps:
    result = step(state)
    state = result.state
    done += 1
    pending.append(_Step(done, result.batch, result.drawn, result.metrics))
    if on_step is not None:
      on_step(done, state)
    stopping = _stop_agreed(stop, done, log_every)
    saving = stopping or done == steps or done % save_every == 0
    if saving or done % log_every == 0:
      pending = [one._replace(metrics=jax.device_get(one.metrics)) for one in pending]
      _write_metrics(pending, writer, progress)
      for one in pending:
        skips.add(one.number, one.batch, one.metrics)
      pending = []
    else:
      progress.update(done)
    if saving:
      checkpointer.save(done, state, _place(position, skips))
      saved = done
    if stopping and done < steps:
      checkpointer.close()
      stop.check()  # raises, since it was asked to stop
  if saved != done:
    checkpointer.save(done, state, _place(position, skips))
  checkpointer.close()
  return state


def _place(position: Position, skips: SkipCounter) -> dict[str, Any]:
  """Where the training stands, besides its state."""
  return {"position": position.get_state(), "skipped": skips.total}


def _write_metrics(steps: Sequence[_Step], writer: MetricWriter, progress: Task) -> None:
  """Means since the last line, under the number of the last step; an update's metric goes before a drawn one of its name."""
  totals = _add_processes(_add_up([done.drawn for done in steps])) | _add_up([done.metrics for done in steps])
  # A mean over nothing is not 0, so it gets no line.
  values = {name: float(total / count) for name, (total, count) in totals.items() if count != 0}
  writer.write(steps[-1].number, values)
  progress.update(steps[-1].number, values)


def _add_up(steps: Sequence[Metrics]) -> dict[str, np.ndarray]:
  """Name -> (sum, count) over the steps."""
  totals: dict[str, np.ndarray] = {}
  for metrics in steps:
    for name, metric in metrics.items():
      pair = np.array([np.asarray(metric.sum), np.asarray(metric.count)], np.float64)
      totals[name] = totals.get(name, 0.0) + pair
  return totals


def _add_processes(totals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same over all processes, which measure things of the same names."""
  if jax.process_count() == 1 or not totals:
    return totals
  rows = multihost_utils.process_allgather(np.stack([totals[name] for name in sorted(totals)]))
  return dict(zip(sorted(totals), rows.sum(axis=0, dtype=np.float64), strict=True))


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
