"""One trained stage: a state on the mesh, a stream of batches, the loop; what mid-training, SFT and RL have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
from jax.sharding import Mesh

from gr2_jax.runs.artifacts import metric_writer, stage_checkpoints
from gr2_jax.runs.run import Run
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.lm import make_lm_update
from gr2_jax.steps.start import start_fresh, start_from
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.loop import fit
from gr2_jax.training.mesh import jit_update
from gr2_jax.training.state import OptimizerConfig, make_optimizer


def begin(decoder: Decoder, options, mesh: Mesh, key, checkpoints: Checkpointer | None):
  """(optimizer, state, shardings) of a stage with the settings `options`; parameters from `checkpoints`, or random by `key`."""
  gradient_steps = options.steps * options.get("minibatches", 1)
  optimizer = make_optimizer(OptimizerConfig(**options.optimizer), gradient_steps)
  if checkpoints is None:
    return optimizer, *start_fresh(decoder, optimizer, key, mesh)
  return optimizer, *start_from(decoder, optimizer, checkpoints, mesh)


def train_lm(
  run: Run,
  stage: str,
  decoder: Decoder,
  batches: grain.DatasetIterator,
  options,
  mesh: Mesh,
  *,
  key,
  init: Checkpointer | None,
  part_names: Sequence[str],
  part_weights: Sequence[float],
  new_rows_from: int | None = None,
  constraint: SlateConstraint | None = None,
  name: str = "checkpoints",
  progress,
  stop,
) -> Any:
  """Trains on packed rows of likelihood parts and returns the parameters; checkpoints lie in `RUN/stage/name`."""
  optimizer, state, shardings = begin(decoder, options, mesh, key, init)
  update = make_lm_update(
    decoder, optimizer, part_names=part_names, part_weights=part_weights, new_rows_from=new_rows_from, constraint=constraint
  )
  label = stage if name == "checkpoints" else f"{stage} ({name})"
  return train(
    run,
    stage,
    state,
    jit_update(update, mesh, shardings),
    lambda state: (next(batches), {}),
    position=batches,
    options=options,
    name=name,
    label=label,
    progress=progress,
    stop=stop,
  ).params


def train(
  run: Run,
  stage: str,
  state,
  update: Callable,
  get_batch: Callable,
  *,
  position,
  options,
  progress,
  stop,
  name: str = "checkpoints",
  label: str | None = None,
  headline: Sequence[str] = (),
):
  """The loop with this run's files: checkpoints in `RUN/stage/name`, metrics in `RUN/metrics`."""
  metrics = stage if name == "checkpoints" else f"{stage}_{name}"
  with progress.task(label or stage, options.steps, headline=headline) as task, metric_writer(run, metrics) as writer:
    return fit(
      state,
      update,
      get_batch,
      position=position,
      steps=options.steps,
      checkpointer=stage_checkpoints(run, stage, name),
      writer=writer,
      progress=task,
      save_every=options.save_every,
      log_every=options.log_every,
      max_skips=options.max_skips,
      stop=stop,
    )
