"""One training of a stage: a state on the mesh, a step, the loop, with this run's files; what all trained stages have in common."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import grain
import optax

from gr2_jax.models.adapters import Join, Lora, frozen_part
from gr2_jax.models.transformer import Model
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.runs.load import make_lora
from gr2_jax.settings import check_settings, setting
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.start import Start, describe_adapters, load_params, start_adapted, start_fresh, start_from
from gr2_jax.steps.update import make_update, only_rows
from gr2_jax.training.best import BestKeeper, abstract_params
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.loop import Position, StepResult, batch_step, fit
from gr2_jax.training.mesh import jit_update
from gr2_jax.training.state import OptimizerConfig, TrainState, make_optimizer


def count_held_out(number: int, most: int = 500) -> int:
  """Of so many examples those that are held out to choose a step: a tenth, `most` at most, and at least one."""
  return max(1, min(most, number // 10))


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
  """How long a training goes on, and how often it saves and tells. Raises ValueError."""

  steps: int = setting(100, "length of the training; a step is an update, of RL all updates on a batch of answers", unit="steps", low=0)
  optimizer: OptimizerConfig = setting(OptimizerConfig(1e-3), "how parameters are updated")
  save_every: int = setting(100, "steps between checkpoints", unit="steps", low=1)
  log_every: int = setting(10, "steps between lines of metrics", unit="steps", low=1)
  max_skips: int = setting(
    10,
    "steps in a row without an update, since loss or gradient is not finite (or no group carries a signal), at which the run stops",
    unit="steps",
    low=1,
  )

  def __post_init__(self) -> None:
    check_settings(self)


class Adapted(NamedTuple):
  """Adapters of a shape: the parameters that stay beside them, on the mesh, and where these come from."""

  lora: Lora
  base: Any
  on: Start


class Begun(NamedTuple):
  """An optimizer, the state before the first step, and its shardings on the mesh; where the state holds adapters alone, what they adapt.

  Updates take `join`, and `frozen` before all else that they read (see `steps.update.make_update`).
  """

  optimizer: optax.GradientTransformation
  state: TrainState
  shardings: Any
  adapted: Adapted | None = None

  @property
  def join(self) -> Join | None:
    """How adapters and their base are joined."""
    return None if self.adapted is None else self.adapted.lora.join

  @property
  def frozen(self) -> tuple[Any, ...]:
    """The adapters' base."""
    return () if self.adapted is None else (self.adapted.base,)

  def whole(self, params: Any) -> Any:
    """The parameters that the model is applied with, of those of a state."""
    return params if self.adapted is None else self.adapted.lora.join(self.adapted.base, params)


def begin(stage: StageContext, model: Model, key: str, init: Start | None, *, adapt: bool = True) -> Begun:
  """Where the training with the settings at a dotted config `key` begins: with the parameters of `init`, or random ones (None).

  Of random ones all are trained, whatever the config says of adapters: those stand on something that was learnt. Adapters of earlier stages
  are merged, and what is trained are new ones, or without `adapt` all parameters.
  """
  section = value_at(stage.config, key)
  optimizer = make_optimizer(OptimizerConfig(**section.optimizer), section.steps * section.get("minibatches", 1))
  if init is None:
    return Begun(optimizer, *start_fresh(model, optimizer, stage.key, stage.mesh))
  params = load_params(model, init, stage.mesh)
  lora = make_lora(stage.config, lambda: stage.vocabulary) if adapt else None
  if lora is None:
    return Begun(optimizer, *start_from(model, optimizer, params, stage.mesh))
  state, shardings = start_adapted(model, optimizer, lora, params, stage.key, stage.mesh)
  return Begun(optimizer, state, shardings, Adapted(lora, frozen_part(params), init))


def train(
  stage: StageContext,
  key: str,
  begun: Begun,
  step: Callable[[TrainState], StepResult],
  position: Position,
  *,
  name: str = "checkpoints",
  headline: Sequence[str] = (),
  best: tuple[Callable[[Any], float], int] | None = None,
) -> TrainState:
  """Runs the loop from what `begin` gave, with this run's files: checkpoints in `RUN/STAGE/name`, metrics in `RUN/metrics`; returns the
  final state.

  `key`: where `steps`, `save_every`, `log_every`, `max_skips` stand in the config. `headline`: the metrics that the bar has room for (all
  where empty). `best`: a score of parameters on held-out data, and after how many steps each; then `RUN/STAGE/name` holds the parameters
  with the highest one, the start among them, which the state returned has as well, and where the training stood lies beside it.
  """
  section, state = value_at(stage.config, key), begun.state
  label, metrics = (stage.name, stage.name) if name == "checkpoints" else (f"{stage.name} ({name})", f"{stage.name}_{name}")

  def checkpoints(folder: str) -> Checkpointer:
    if begun.adapted is None:
      return stage.checkpoints(stage.name, folder)
    about = describe_adapters(begun.adapted.lora, stage.path(folder), begun.adapted.on)
    return stage.checkpoints(stage.name, folder, about)

  with ExitStack() as opened:
    keeper = None
    if best is not None:
      writer = opened.enter_context(stage.metric_writer(f"{metrics}_validation"))
      keeper = BestKeeper(
        checkpoints(name),
        best[0],
        every=best[1],
        steps=section.steps,
        abstract=abstract_params(state.params),
        tell=lambda step, score: writer.write(step, {"score": score}),
      )
      if keeper.step is None:  # a training that goes on has scored its start, and what it wrote then stays
        keeper.consider(0, state)
    state = fit(
      state,
      step,
      position=position,
      steps=section.steps,
      checkpointer=checkpoints(name if keeper is None else f"{name}_training"),
      writer=opened.enter_context(stage.metric_writer(metrics)),
      progress=opened.enter_context(stage.progress.task(label, section.steps, headline=headline)),
      save_every=section.save_every,
      log_every=section.log_every,
      max_skips=section.max_skips,
      stop=stage.stop,
      section=key,
      on_step=None if keeper is None else keeper.consider,
    )
  if keeper is None:
    return state
  stage.say(f"{label}: the best of the held-out scores, {keeper.best:.4f}, is that of step {keeper.step} of {section.steps}")
  return dataclasses.replace(state, params=keeper.load(abstract_params(state.params)))


def train_lm(
  stage: StageContext,
  key: str,
  batches: grain.DatasetIterator,
  parts: Mapping[str, float],
  *,
  init: Start | None,
  new_rows_from: int | None = None,
  constraint: SlateConstraint | None = None,
  name: str = "checkpoints",
  adapt: bool = True,
) -> Any:
  """Trains the run's model on packed rows of likelihood `parts` (name -> weight) and returns the parameters.

  `key`: of its settings in the config. Checkpoints lie in `RUN/STAGE/name`. `new_rows_from`: only token rows from there on move.
  `adapt`: see `begin`.
  """
  begun = begin(stage, stage.decoder, key, init, adapt=adapt)
  moved = begun.optimizer if new_rows_from is None else only_rows(begun.optimizer, new_rows_from)
  update = make_update(moved, make_lm_loss(stage.decoder, parts, constraint), join=begun.join)
  step = batch_step(jit_update(update, stage.mesh, begun.shardings, frozen=begun.frozen), lambda _: next(batches))
  return begun.whole(train(stage, key, begun, step, batches, name=name).params)
