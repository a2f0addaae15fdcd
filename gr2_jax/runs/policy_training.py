"""Trainings on a policy's own answers to slates, with a run's files: reinforcement learning, and losses on what was rolled out."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.models.transformer import Decoder
from gr2_jax.rl.draw import Drawn, SlateStream
from gr2_jax.rl.options import RlOptions, RolloutOptions
from gr2_jax.rl.step import Collector, make_collector, make_roll_out, rl_step
from gr2_jax.rl.stop import SilenceCounter
from gr2_jax.rollout.generate import Rollout
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.training import Begun, begin, train
from gr2_jax.steps.policy import make_policy_update
from gr2_jax.steps.start import Start
from gr2_jax.steps.update import Loss, Update, make_update
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import jit_update, to_local
from gr2_jax.training.state import TrainState

# Of the thirty metrics a step that are written, what a bar has room for.
RL_HEADLINE = ("reward", "recall@1", "valid_rate", "near_identity_rate", "kept_fraction", "completion_length", "entropy")


def make_stream(stage: StageContext, style: PromptStyle, rollout: RolloutOptions, slates: Sequence[Slate] | None = None) -> SlateStream:
  """Training slates (or those given) as prompts of a style, drawn by the run's seed."""
  slates = stage.slates("train") if slates is None else slates
  return SlateStream(slates, stage.prompts, style, seed=stage.seed, prompts=rollout.prompts, presentation=rollout.presentation)


def train_by_reward(stage: StageContext, options: RlOptions, style: PromptStyle, init: Start | None) -> None:
  """Reinforcement learning from the parameters in `init`, on prompts of a style."""
  constraint = stage.constraint(style)
  begun = begin(stage, stage.decoder, stage.name, init)
  update = make_policy_update(stage.decoder, begun.optimizer, options.update, constraint, join=begun.join)
  stream = make_stream(stage, style, options.collect.rollout)
  collector = make_collector(
    stage.decoder,
    stream,
    options.collect,
    reward=options.reward,
    loss=options.update.loss,
    constraint=constraint,
    mesh=stage.mesh,
    key=stage.key,
    whole=begun.whole,
  )
  silence = SilenceCounter(stage.options.training.max_skips)
  train_in_steps(stage, begun, collector, jit_update(update, stage.mesh, begun.shardings, frozen=begun.frozen), RL_HEADLINE, silence)


def train_in_steps(
  stage: StageContext,
  begun: Begun,
  collector: Collector,
  update: Update,
  headline: Sequence[str],
  silence: SilenceCounter | None = None,
) -> None:
  """The loop over `rl_step`; `update` is compiled."""
  train(stage, stage.name, begun, lambda state: rl_step(state, collector, update, silence), collector.stream, headline=headline)


def train_by_loss(
  stage: StageContext,
  decoder: Decoder,
  init: Start | None,
  stream: SlateStream,
  loss_fn: Loss,
  make_batch: Callable[[Any, int, Drawn], dict[str, Any]],
  *,
  frozen: tuple[Any, ...] = (),
) -> None:
  """Trains `decoder` from the parameters in `init` by a loss of `steps.direct`; `make_batch(params, step, drawn)`: what it reads."""
  begun = begin(stage, decoder, stage.name, init)
  update = make_update(begun.optimizer, loss_fn, join=begun.join)
  compiled = jit_update(update, stage.mesh, begun.shardings, frozen=(*begun.frozen, *frozen))

  def get_batch(state: TrainState) -> dict[str, Any]:
    drawn = next(stream)
    return make_batch(begun.whole(state.params), int(state.step), drawn) | {"weights": drawn.weights}

  train(stage, stage.name, begun, batch_step(compiled, get_batch), stream, headline=("loss", "entropy", "recall@1"))


def make_local_roll_out(
  stage: StageContext, decoder: Decoder, style: PromptStyle, options: RolloutOptions
) -> Callable[[Any, Drawn, jax.Array], Rollout]:
  """`roll_out(params, Drawn, key) -> Rollout` of this process's prompts in a style, brought to the host."""
  roll_out = make_roll_out(decoder, stage.vocabulary, options, stage.constraint(style))

  def answer(params: Any, drawn: Drawn, key: jax.Array) -> Rollout:
    with jax.set_mesh(stage.mesh):
      return to_local(roll_out(params, drawn.to_mesh(stage.mesh), key), stage.mesh)

  return answer


def completion_batch(drawn: Drawn, completions: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
  """The batch of likelihood losses: `prompts, prompt_mask [P, Lp]`, `completions, completion_mask [P, G, Lc]`."""
  return {"prompts": drawn.prompts.tokens, "prompt_mask": drawn.prompts.mask, "completions": completions, "completion_mask": mask}
