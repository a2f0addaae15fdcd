"""The steps of policies that write their answers: SFT on packed rows, rollouts and updates of RL and OPD, the direct policy's methods."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.stage_steps.policies import count_policies
from experiments.stage_steps.sizes import Sizes, make_vocabulary, shortened_prompt
from experiments.stage_steps.step import Argument, StageStep, abstract_params, abstract_training, flags, integers, random_key, shape
from experiments.stages.direct import DirectOptions
from experiments.stages.opd import OpdStageOptions
from experiments.stages.prune import PruneOptions
from experiments.stages.rl import RlStageOptions
from experiments.stages.sft import SftOptions
from gr2_jax.language.answers import direct_answer_length
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.models.config import preset
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.models.transformer import Decoder
from gr2_jax.rl.draw import Asked
from gr2_jax.rl.options import CollectOptions, RlOptions, RolloutOptions, read_rollout_options
from gr2_jax.rl.step import make_roll_out
from gr2_jax.rollout.scoring import answer_opening
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs.load import make_lora
from gr2_jax.runs.starts import model_config
from gr2_jax.runs.training import TrainingOptions
from gr2_jax.settings import read_record
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.direct import make_answer_loss, make_distillation_loss, make_listwise_loss
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.opd import make_opd_update
from gr2_jax.steps.policy import make_policy_update
from gr2_jax.steps.update import Loss, Update, make_update
from gr2_jax.training.state import make_optimizer


class WrittenSteps:
  """The steps of a config's policies that write. Prompts are as long as they may be, and so are answers."""

  def __init__(self, config: ConfigDict, sizes: Sizes, teacher: str | None = None) -> None:
    self.config, self.sizes = config, sizes
    self.vocabulary, self.style = make_vocabulary(config, sizes), PromptStyle(**config.prompt)
    self.direct_style = dataclasses.replace(self.style, direct=True)
    self.decoder = Decoder(model_config(config, self.vocabulary))
    self.teacher = Decoder(preset(teacher, self.vocabulary.size)) if teacher else self.decoder
    self.lora = make_lora(config, lambda: self.vocabulary)
    self.join = self.lora.join if self.lora else None

  def sft(self) -> Iterator[StageStep]:
    """On traces in packed rows, and once more without their reasoning."""
    options: SftOptions = read_record(SftOptions, self.config, "sft")
    parts = {"reasoning": options.reasoning_weight, "answer": options.answer_weight}
    rows = options.batch_size, options.row_length
    batch = {name: integers(*rows) for name in ("tokens", "positions", "segment_ids", "parts")} | {"weights": shape(*rows)}
    styles = {"update": self.style} | ({"update without reasoning": self.direct_style} if options.without_reasoning else {})
    for name, style in styles.items():
      loss = make_lm_loss(self.decoder, parts, self.constraint(style))
      yield self.likelihood("sft", name, loss, batch, options.training, positions=rows[0] * rows[1])

  def rl(self) -> Iterator[StageStep]:
    """Rounds of rollouts, as many as may be, and the update."""
    options: RlStageOptions = read_record(RlStageOptions, self.config, "rl")
    yield from self._by_reward("rl", options.groups.to_rl(self.config.decoding.max_new_tokens), self.style, options.training)

  def opd(self) -> Iterator[StageStep]:
    """A round of rollouts and the update under the teacher."""
    options: OpdStageOptions = read_record(OpdStageOptions, self.config, "opd")
    config, collect = options.update(), options.collect(self.config.decoding.max_new_tokens)
    steps, constraint = options.training.steps, self.constraint(self.style)
    optimizer = make_optimizer(options.training.optimizer, steps)
    update = make_opd_update(self.decoder, self.teacher, optimizer, config, steps=steps, constraint=constraint, join=self.join)
    yield self.roll_out("opd", "rollout", self.decoder, collect.rollout, self.style, steps)
    batch = Argument("batch", self.groups(collect.rollout, self._prompt(self.style)))
    arguments = abstract_training(self.decoder, optimizer, self.lora, batch, abstract_params(self.teacher))
    yield self.update("opd", "update", update, arguments, options.training, self._positions(collect.rollout, self.style))

  def direct(self) -> Iterator[StageStep]:
    """By RL, on answers of another policy, by self-distillation, or listwise."""
    options: DirectOptions = read_record(DirectOptions, self.config, "direct")
    limit, style, steps = self._limit(self.direct_style), self.direct_style, options.training.steps
    rollout = read_rollout_options(options.groups, limit)
    prompts, group, asked = rollout.prompts, rollout.group, self._prompt(style)
    if options.method == "rl":
      learning = options.groups.to_rl(self.config.decoding.max_new_tokens)
      collect = dataclasses.replace(learning.collect, rollout=rollout, overlong_zone=0)
      yield from self._by_reward("direct", dataclasses.replace(learning, collect=collect), style, options.training)
    elif options.method == "scores":
      size = self.sizes.candidates
      batch = {"prompts": integers(prompts, asked), "prompt_mask": integers(prompts, asked), "weights": shape(prompts)}
      batch |= {"references": integers(prompts, size, self._reference_length), "labels": integers(prompts, size)}
      loss = make_listwise_loss(self.decoder, answer_opening(self.vocabulary, style), self.constraint(style))
      yield self.likelihood("direct", "update", loss, batch, options.training, positions=prompts * asked)
    elif options.method == "sft":
      slates = min(self.sizes.slates["train"], options.max_slates or self.sizes.slates["train"])
      greedy = self._reasoning(rollout, prompts=prompts * group)
      yield self.roll_out("direct", "answers of init", self.decoder, greedy, self.style, -(-slates // greedy.prompts))
      loss = make_answer_loss(self.decoder, self.constraint(style))
      batch = self._completions(prompts, 1, style)
      yield self.likelihood("direct", "update", loss, batch, options.training, positions=prompts * (asked + limit))
    else:
      yield self.roll_out("direct", "reasoning of init", self.decoder, self._reasoning(rollout), self.style, steps)
      yield self.roll_out("direct", "rollout", self.decoder, rollout, style, steps)
      # The teacher reads the prompt of its reasoning, and that.
      yield self._distil("direct", self.decoder, rollout, style, self._prompt(self.style) + self._limit(self.style), options.training)

  def prune(self) -> Iterator[StageStep]:
    """The recovery of the policy that is cut, under the whole one."""
    options: PruneOptions = read_record(PruneOptions, self.config, "prune")
    if options.training.steps:
      pruned = prune_decoder(self.decoder, range(options.layers))
      style = self.direct_style if options.init == "direct" else self.style
      rollout = read_rollout_options(options, self._limit(style))
      yield self.roll_out("prune", "rollout", pruned, rollout, style, options.training.steps)
      yield self._distil("prune", pruned, rollout, style, self._prompt(style), options.training)

  def evaluation(self) -> Iterator[StageStep]:
    """Greedy answers of the policies to the test slates, in every presentation."""
    options = self.config.evaluation
    slates = min(self.sizes.slates["test"], options.max_slates or self.sizes.slates["test"])
    calls = -(-slates // options.batch_size) * (options.shuffles + 1)
    for direct, policies in count_policies(self.config).items():
      style = self.direct_style if direct else self.style
      rollout = RolloutOptions(options.batch_size, 1, self._limit(style))
      name = "direct answers" if direct else "answers"
      yield self.roll_out("evaluation", name, self.decoder, rollout, style, policies * calls)
    if variants := self.config.compress.variants:
      rollout = RolloutOptions(options.batch_size, 1, self._limit(self.style))
      name, short = "answers on compressed histories", shortened_prompt(self.config, self.sizes)
      yield self.roll_out("evaluation", name, self.decoder, rollout, self.style, len(variants) * calls, short)

  def _by_reward(self, stage: str, options: RlOptions, style: PromptStyle, training: TrainingOptions) -> Iterator[StageStep]:
    rollout, steps = options.collect.rollout, training.steps
    optimizer = make_optimizer(training.optimizer, steps * options.update.minibatches)
    update = make_policy_update(self.decoder, optimizer, options.update, self.constraint(style), join=self.join)
    yield self.roll_out(stage, "rollout", self.decoder, rollout, style, steps * _count_rounds(options.collect))
    arguments = abstract_training(self.decoder, optimizer, self.lora, Argument("batch", self.groups(rollout, self._prompt(style))))
    yield self.update(stage, "update", update, arguments, training, self._positions(rollout, style))

  def roll_out(
    self, stage: str, name: str, decoder: Decoder, options: RolloutOptions, style: PromptStyle, calls: int, prompt: int | None = None
  ) -> StageStep:
    """Answers to prompts of `prompt` tokens, by default as many as there may be."""
    prompts, asked = options.prompts, self._prompt(style) if prompt is None else prompt
    references = integers(prompts, self.vocabulary.num_candidates, self._reference_length)
    slots = integers(prompts, self.sizes.candidates)
    shapes: tuple[Any, ...] = (integers(prompts, asked), integers(prompts, asked), references, slots, slots)
    roll_out = make_roll_out(decoder, self.vocabulary, options, self.constraint(style))
    steps = (options.max_new_tokens - 1) * options.group / (options.decode_rows or options.group)
    trips: tuple[float, ...] = (steps, 1)
    if options.decode_prompts is not None and options.decode_prompts < prompts:
      refill = max(options.decode_prompts // 4, 1)
      trips = (-(-prompts // refill), steps * refill / options.decode_prompts, 1)
    arguments = (abstract_params(decoder), Argument("batch", Asked(*shapes)), random_key())
    positions = prompts * (asked + options.group * options.max_new_tokens)
    return StageStep(stage, name, roll_out, arguments, calls, positions=positions, trips=trips)

  def _distil(
    self, stage: str, student: Decoder, rollout: RolloutOptions, style: PromptStyle, teacher_prompt: int, training: TrainingOptions
  ) -> StageStep:
    loss = make_distillation_loss(student, self.decoder, self.constraint(style))
    asked = integers(rollout.prompts, teacher_prompt)
    batch = self._completions(rollout.prompts, rollout.group, style) | {"teacher_prompts": asked, "teacher_mask": asked}
    optimizer = make_optimizer(training.optimizer, training.steps)
    arguments = abstract_training(student, optimizer, self.lora, Argument("batch", batch), abstract_params(self.decoder))
    update = make_update(optimizer, loss, join=self.join)
    return self.update(stage, "update", update, arguments, training, self._positions(rollout, style))

  def likelihood(self, stage: str, name: str, loss: Loss, batch: dict, training: TrainingOptions, *, positions: int) -> StageStep:
    """An update by likelihood."""
    optimizer = make_optimizer(training.optimizer, training.steps)
    arguments = abstract_training(self.decoder, optimizer, self.lora, Argument("batch", batch))
    return self.update(stage, name, make_update(optimizer, loss, join=self.join), arguments, training, positions)

  def update(
    self, stage: str, name: str, update: Update, arguments: tuple[Argument, ...], training: TrainingOptions, positions: int
  ) -> StageStep:
    """A step of a training; its batch is the second argument."""
    examples = jax.tree.leaves(arguments[1].shapes)[0].shape[0]  # one a row, at least
    told: dict[str, Any] = {"positions": positions, "examples": examples, "save_every": training.save_every}
    return StageStep(stage, name, update, arguments, training.steps, trains=True, **told)

  def _reasoning(self, rollout: RolloutOptions, **changes: Any) -> RolloutOptions:
    """One answer to each prompt, with its reasoning."""
    return dataclasses.replace(rollout, group=1, max_new_tokens=self._limit(self.style), decode_rows=None, **changes)

  def constraint(self, style: PromptStyle) -> SlateConstraint | None:
    """What answers may hold."""
    return SlateConstraint(self.vocabulary, style) if self.config.decoding.constraint == "slate" else None

  @property
  def _reference_length(self) -> int:
    return 1 if self.style.reference == "slot" else self.vocabulary.num_levels + 2 * self.style.sid_markers

  def _prompt(self, style: PromptStyle) -> int:
    """Tokens of a prompt, at most; a direct style opens the answer on top."""
    return style.max_prompt_tokens + (2 if style.direct else 0)

  def _limit(self, style: PromptStyle) -> int:
    if not style.direct:
      return self.config.decoding.max_new_tokens
    return direct_answer_length(self.sizes.candidates, self.vocabulary, style)

  def _positions(self, options: RolloutOptions, style: PromptStyle) -> int:
    """Tokens of prompts and answers."""
    return options.prompts * (self._prompt(style) + options.group * options.max_new_tokens)

  def _completions(self, prompts: int, group: int, style: PromptStyle) -> dict:
    asked, written = integers(prompts, self._prompt(style)), integers(prompts, group, self._limit(style))
    return {"prompts": asked, "prompt_mask": asked, "completions": written, "completion_mask": written, "weights": shape(prompts)}

  def groups(self, options: RolloutOptions, prompt: int) -> GroupBatch:
    """What an update by reward reads of answers to prompts of so many tokens."""
    rows, sizes = options.prompts, (options.prompts, options.group, options.max_new_tokens)
    asked = integers(rows, prompt)
    return GroupBatch(
      prompts=asked,
      prompt_mask=asked,
      completions=integers(*sizes),
      completion_mask=flags(*sizes),
      behaviour_logps=shape(*sizes),
      advantages=shape(*sizes[:2]),
      weights=shape(rows),
      keep=flags(rows),
    )


def _count_rounds(options: CollectOptions) -> int:
  """Rounds of rollouts in a step, at most."""
  return options.max_rounds if options.dynamic_sampling else 1
