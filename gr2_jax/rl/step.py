"""A step of reinforcement learning, read from top to bottom in `rl_step`: draw slates, roll out, parse, reward, compare, batch, update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rewards.judge import HostView, Judgement, make_judge
from gr2_jax.rewards.own import RewardFn, runs_on_host
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rl.draw import Asked, Drawn, SlateStream
from gr2_jax.rl.options import CollectOptions, RolloutOptions
from gr2_jax.rl.stop import SilenceCounter
from gr2_jax.rollout.generate import Constraint, Rollout, RolloutConfig
from gr2_jax.rollout.parse import ParsedAnswers, parse_completions
from gr2_jax.rollout.refill import make_generate_queue
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.update import Update
from gr2_jax.training.loop import StepResult
from gr2_jax.training.mesh import to_global, to_local
from gr2_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Collector:
  """The parts of a step up to its batch, made by `make_collector`; what stands on the device stays there, but for free text.

  `stream`: where slates are drawn from. `roll_out(params, Asked, key) -> Rollout`. `parse(Rollout, Asked, Drawn) -> ParsedAnswers`.
  `judge(ParsedAnswers, Rollout, Asked, Drawn) -> Judgement`.
  """

  stream: SlateStream
  roll_out: Callable[[Any, Asked, jax.Array], Rollout]
  parse: Callable[[Rollout, Asked, Drawn], ParsedAnswers]
  judge: Callable[[ParsedAnswers, Rollout, Asked, Drawn], Judgement]
  options: CollectOptions
  loss: PolicyLossConfig
  mesh: Mesh
  key: jax.Array


def rl_step(state: TrainState, collector: Collector, update: Update, silence: SilenceCounter | None = None) -> StepResult:
  """One step: the policy answers slates, its answers are compared within their groups, and it learns from the groups that differ.

  `update(state, GroupBatch) -> (state, metrics)`: `steps.policy.make_policy_update`, or another update on groups, compiled by `jit_update`.
  `silence` raises NoSignalError where nothing was learnt for too long.
  """
  key = jax.random.fold_in(collector.key, int(state.step))

  def play_round(number: int) -> Round:
    drawn = next(collector.stream)  # draw slates
    asked = drawn.to_mesh(collector.mesh)
    with jax.set_mesh(collector.mesh):
      rollout = collector.roll_out(state.params, asked, jax.random.fold_in(key, number))  # roll out
      answers = collector.parse(rollout, asked, drawn)  # parse
      judgement = collector.judge(answers, rollout, asked, drawn)  # reward; advantages and filter, in one call of the kernel
    return Round(rollout, judgement, to_global(drawn.weights, collector.mesh))

  options = collector.options
  batch, collected = collect_groups(  # batch
    play_round,
    num_prompts=options.rollout.prompts // jax.process_count(),
    max_rounds=options.max_rounds if options.dynamic_sampling else 1,
    min_filled=options.min_filled,
    mask_truncated=collector.loss.mask_truncated,
    fetch=functools.partial(to_local, mesh=collector.mesh),
  )
  if silence is not None:
    silence.add(collected)
  new_state, metrics = update(state, batch)  # update
  return StepResult(new_state, batch, collected, metrics)


def make_collector(
  decoder: Decoder,
  stream: SlateStream,
  options: CollectOptions,
  *,
  reward: RewardConfig | RewardFn,
  loss: PolicyLossConfig,
  constraint: Constraint | None,
  mesh: Mesh,
  key: jax.Array,
  whole: Callable[[Any], Any] = lambda params: params,
) -> Collector:
  """The parts of a step for one policy's `decoder` and the slates and prompts of a stream.

  `reward`: a built-in one, or a function of one's own (see `rewards.own`). `constraint`: which tokens may follow, in rollout and update
  alike. `key`: what rollouts draw with, folded with step and round. `whole(params)`: what a state's parameters are asked as, such as
  adapters beside their base.
  """
  context, style = stream.context, stream.style
  roll_out = make_roll_out(decoder, context.vocabulary, options.rollout, constraint)
  judge = make_judge(
    reward,
    max_new_tokens=options.rollout.max_new_tokens,
    overlong_zone=options.overlong_zone,
    divide_by=loss.divide_by,
    keep_all=not options.dynamic_sampling,
  )

  def parse(rollout: Rollout, asked: Asked, drawn: Drawn) -> ParsedAnswers:
    if style.answer == "compact":
      return parse_completions(rollout.completions, asked.references, asked.shown, drawn.slates, context, style)
    completions = to_local(rollout.completions, mesh)
    found = parse_completions(completions, drawn.prompts.references, drawn.presented, drawn.slates, context, style)
    return to_global(found, mesh)

  def judge_answers(answers: ParsedAnswers, rollout: Rollout, asked: Asked, drawn: Drawn) -> Judgement:
    host = None
    if runs_on_host(reward):
      host = HostView(_texts(to_local(rollout.completions, mesh), context.vocabulary), drawn.slates, context.catalogue, mesh)
    return judge(answers, asked.labels, asked.shown, rollout.completion_mask, host)

  return Collector(
    stream=stream,
    roll_out=lambda params, asked, key: roll_out(whole(params), asked, key),
    parse=parse,
    judge=judge_answers,
    options=options,
    loss=loss,
    mesh=mesh,
    key=key,
  )


def make_roll_out(
  decoder: Decoder, vocabulary: Vocabulary, options: RolloutOptions, constraint: Constraint | None
) -> Callable[[Any, Asked, jax.Array], Rollout]:
  """`roll_out(params, Asked, key) -> Rollout` under the mesh that is set, on the device."""
  sizes = {"group": options.group, "max_new_tokens": options.max_new_tokens, "rows": options.decode_rows}
  config = RolloutConfig.of(decoder, vocabulary, constraint=constraint, **sizes)
  generate, sampling = make_generate_queue(config, options.decode_prompts), Sampling.create(options.temperature)

  def roll_out(params: Any, asked: Asked, key: jax.Array) -> Rollout:
    return generate(params, asked.tokens, asked.mask, key, sampling, references=asked.references)

  return roll_out


def _texts(completions: np.ndarray, vocabulary: Vocabulary) -> list[list[str]]:
  """Completions `[P, G, Lc]` as text, each up to its EOS."""

  def read(tokens: list[int]) -> str:
    return vocabulary.decode(tokens[: tokens.index(vocabulary.eos_id)] if vocabulary.eos_id in tokens else tokens)

  return [[read(tokens) for tokens in group] for group in completions.tolist()]
