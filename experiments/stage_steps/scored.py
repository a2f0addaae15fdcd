"""The steps of scored policies: what `runs.scored.train_scored` compiles for SFT, OPD, RL with its control, and the direct policy."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.stage_steps.policies import count_policies
from experiments.stage_steps.sizes import Sizes, make_vocabulary
from experiments.stage_steps.step import (
  Argument,
  StageStep,
  abstract_params,
  abstract_training,
  count_looks,
  flags,
  integers,
  random_key,
  shape,
)
from experiments.stages import prune
from experiments.stages.evidence import list_read_facts
from experiments.stages.opd import OpdStageOptions
from experiments.stages.rl import RlStageOptions
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.objectives.distillation import DistillationConfig, beta_at
from gr2_jax.rewards.slate import make_slate_reward
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rollout.reasoned import Thoughts, make_think, score_thoughts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.true_facts import TrueFacts
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.runs.load import make_lora
from gr2_jax.runs.scored import SLATES_AT_ONCE, TARGETS, is_reasoned, make_scorer
from gr2_jax.runs.training import count_held_out
from gr2_jax.settings import read_record
from gr2_jax.steps.opd import OpdConfig
from gr2_jax.steps.scored import (
  REWARDED,
  ScoredLoss,
  make_imitation_loss,
  make_reasoned_imitation_loss,
  make_reasoned_reward_loss,
  make_reasoned_target_loss,
  make_reward_loss,
  make_target_loss,
)
from gr2_jax.steps.scored_opd import make_reasoned_opd_loss, make_scored_opd_loss
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import OptimizerConfig, make_optimizer


class ScoredSteps:
  """The steps of a config's scored policies."""

  def __init__(self, config: ConfigDict, sizes: Sizes) -> None:
    self.config, self.sizes = config, sizes
    self.vocabulary, self.facts = make_vocabulary(config, sizes), list_read_facts(config)
    self.lora = make_lora(config, lambda: self.vocabulary)
    self.reasoned = is_reasoned(config)
    self.limit, self.opening = config.decoding.max_new_tokens, self.vocabulary.special("think")
    self.constraint = TrueFacts(self.vocabulary, self.facts) if config.decoding.constraint == "facts" else None
    self.edges = Argument("whole", shape(len(self.facts), config.evidence.bins + 1))

  def sft(self) -> Iterator[StageStep]:
    """On rankings or targets, behind the teacher's reasonings or none."""
    options, rows, train = self.config.sft, self.config.sft.batch_size, self.sizes.slates["train"]
    by_targets = options.targets in TARGETS
    learnt = {"targets": self._of_slates(rows)} if by_targets else {"rankings": self._of_slates(rows, jnp.int32)}
    make_loss: Callable[..., ScoredLoss] = make_target_loss if by_targets else make_imitation_loss
    if self.reasoned:
      learnt |= self._thoughts(rows, 1)
      loss = {"opening": self.opening, "reasoning_weight": options.reasoning_weight, "constraint": self.constraint}
      make_loss = functools.partial(make_reasoned_imitation_loss, **loss)
    held_out = self.sizes.slates["validation"] if by_targets else count_held_out(train)
    reasoned: dict[str, Any] = {"reasoned": self.reasoned, "group": int(self.reasoned)}
    yield from self._train("sft", make_loss, rows, learnt, held_out=held_out, learns=True, **reasoned)

  def rl(self) -> Iterator[StageStep]:
    """On rankings drawn, after the policy's own reasonings or none; and the control."""
    options: RlStageOptions = read_record(RlStageOptions, self.config, "rl")
    groups, rows = options.groups, options.groups.prompts
    reward = groups.reward.builtin if options.slate.top is None else make_slate_reward(options.slate)
    drawing: dict[str, Any] = {"temperature": groups.temperature, "divide_by": groups.loss.divide_by, "through": options.through}
    learnt = {"labels": self._of_slates(rows, jnp.int32)}
    if not isinstance(reward, RewardConfig):
      kinds = {"brands": jnp.int32, "small": jnp.bool_}
      learnt |= {name: self._of_slates(rows, kinds.get(name, jnp.float32)) for name in REWARDED}
    group = groups.group if self.reasoned else 0
    train = functools.partial(self._train, "rl", rows=rows, reasoned=self.reasoned, group=group)
    if not self.reasoned:
      yield from train(lambda model: make_reward_loss(model, reward, group=groups.group, **drawing), learnt=learnt)
    else:
      learnt |= self._thoughts(rows, group) | {"start_log_probs": shape(rows, group, self.limit)}
      if options.truth_weight or options.named_weight:
        learnt |= {"truth": shape(rows, group), "named": integers(rows, group)}
      weights: dict[str, Any] = {"anchor": options.anchor, "truth_weight": options.truth_weight, "named_weight": options.named_weight}
      yield self._think("rl", rows, group, with_start=True)
      yield from train(
        lambda model: make_reasoned_reward_loss(
          model, self.opening, reward, rankings=options.rankings, constraint=self.constraint, **weights, **drawing
        ),
        learnt=learnt,
      )
    if options.control:
      taught = {"targets": self._of_slates(rows)} | (self._thoughts(rows, group) if self.reasoned else {})
      by_labels = functools.partial(make_reasoned_target_loss, opening=self.opening) if self.reasoned else make_target_loss
      if self.reasoned:
        yield self._think("rl", rows, group, with_start=False, name="control: think")
      yield from train(by_labels, learnt=taught, name="control")

  def opd(self) -> Iterator[StageStep]:
    """Under a teacher, which is taken to be as large as the student."""
    options: OpdStageOptions = read_record(OpdStageOptions, self.config, "opd")
    sizes: dict[str, Any] = {"rows": options.prompts, "group": options.group, "rankings": options.rankings, "reasoned": self.reasoned}
    yield from self._distil("opd", options.update(), options.reward.builtin, **sizes)

  def direct(self) -> Iterator[StageStep]:
    """On targets, at once."""
    rows = self.config.direct.prompts
    yield from self._train("direct", make_target_loss, rows, {"targets": self._of_slates(rows)}, learns=True)

  def prune(self) -> Iterator[StageStep]:
    """The recovery of the policy that is cut, under the whole one."""
    options = self.config.prune
    if options.steps:
      config = OpdConfig(DistillationConfig(beta=1.0, beta_end=1.0), reward_weight=0.0, temperature=options.temperature)
      sizes: dict[str, Any] = {"rows": options.prompts, "group": options.group, "rankings": prune.RANKINGS, "layers": range(options.layers)}
      yield from self._distil("prune", config, RewardConfig(), reasoned=self.reasoned and options.init == "rl", **sizes)

  def evaluation(self) -> Iterator[StageStep]:
    """Answers of the policies to the test slates; then of one of them once more for every fact, whose values are dealt anew."""
    options = self.config.evaluation
    slates = min(self.sizes.slates["test"], options.max_slates or self.sizes.slates["test"])
    at_once = min(SLATES_AT_ONCE, slates)
    parts, policies = -(-slates // at_once), count_policies(self.config)
    for direct, number in policies.items():
      asked = number + (len(self.facts) if direct or len(policies) == 1 else 0)  # the line that does not reason, where there is one
      yield self.answer("evaluation", "direct answers" if direct else "answers", at_once, parts * asked, reasoned=not direct)

  def _distil(
    self,
    stage: str,
    config: OpdConfig,
    reward: RewardConfig,
    *,
    rows: int,
    group: int,
    rankings: int,
    reasoned: bool,
    layers: Sequence[int] | None = None,
  ) -> Iterator[StageStep]:
    learnt = {"labels": self._of_slates(rows, jnp.int32)}
    frozen: tuple[Argument, ...] = ()
    teacher = self._model()
    if reasoned:
      learnt |= {"teacher_facts": shape(rows, self.sizes.candidates, len(self.facts))} | self._thoughts(rows, group)
      frozen = (abstract_params(teacher), self.edges)
      yield self._think(stage, rows, group, with_start=False, layers=layers)
    else:
      learnt |= {"teacher_scores": self._of_slates(rows)}

    def make_loss(model: SlateScorer) -> ScoredLoss:
      if reasoned:
        return make_reasoned_opd_loss(model, teacher, self.opening, config, reward, rankings=rankings)
      return make_scored_opd_loss(model, config, reward, group=group)

    steps = self.config[stage].steps
    at_step = lambda step: {"beta": beta_at(config.distillation, step, steps)}
    sizes: dict[str, Any] = {"reasoned": reasoned, "group": group if reasoned else 0, "layers": layers}
    yield from self._train(stage, make_loss, rows, learnt, frozen=frozen, at_step=at_step, **sizes)

  def _train(
    self,
    stage: str,
    make_loss: Callable[[SlateScorer], ScoredLoss],
    rows: int,
    learnt: dict[str, Any],
    *,
    reasoned: bool = False,
    group: int = 0,
    held_out: int | None = None,
    learns: bool = False,
    name: str = "update",
    layers: Sequence[int] | None = None,
    frozen: tuple[Argument, ...] = (),
    at_step: Callable[[jax.Array], dict[str, jax.Array]] = lambda step: {},
  ) -> Iterator[StageStep]:
    """The update on `rows` slates, and how held-out slates choose a step."""
    section, model = value_at(self.config, stage), self._model(layers, learns)
    optimizer = make_optimizer(OptimizerConfig(**section.optimizer), section.steps)
    key = jax.random.key(0)
    # A policy that begins at random, under supervision, is trained whole.
    lora = None if learns or (stage == "opd" and self.config.opd.init != "sft") else self.lora
    update = make_update(
      optimizer,
      make_loss(model),
      whole_batch=lambda step, _: {"key": jax.random.fold_in(key, step), **at_step(step)},
      join=lora.join if lora else None,
    )
    batch = {"slates": self._slates(rows), "weights": shape(rows)} | learnt
    arguments = abstract_training(model, optimizer, lora, Argument("batch", batch), self.edges, *frozen)
    told: dict[str, Any] = {"positions": self._positions(rows, group), "examples": rows, "save_every": section.save_every}
    every = self.config.answer.evaluate_every
    yield StageStep(stage, name, update, arguments, section.steps, trains=True, look_every=every, **told)
    number = self.sizes.slates["validation"] if held_out is None else held_out
    at_once = min(SLATES_AT_ONCE, number)
    looks = count_looks(section.steps, every) * -(-number // at_once)
    found = "validation" if name == "update" else f"{name}: validation"
    yield self.answer(stage, found, at_once, looks, reasoned=reasoned, layers=layers)

  def answer(self, stage: str, name: str, rows: int, calls: int, *, reasoned: bool, layers: Sequence[int] | None = None) -> StageStep:
    """Scores of slates, at once or after the likeliest reasoning."""
    model = self._model(layers)
    arguments = (abstract_params(model), Argument("batch", self._slates(rows)), self.edges)
    if not reasoned:
      at_once = lambda params, slates, edges: model.apply({"params": params}, slates, edges)
      return StageStep(stage, name, at_once, arguments, calls, positions=self._positions(rows, 0))
    think = make_think(model, self.vocabulary, group=1, max_new_tokens=self.limit, constraint=self.constraint)
    greedy = Sampling.create(temperature=0.0)

    def answer(params: Any, slates: PackedSlates, edges: jax.Array) -> tuple[jax.Array, jax.Array]:
      found = think(params, slates, edges, jax.random.key(0), greedy)
      thoughts = Thoughts(found.completions, found.completion_mask)
      return score_thoughts(model, params, slates, edges, thoughts, self.opening).scores[:, 0], thoughts.tokens

    return StageStep(stage, name, answer, arguments, calls, positions=self._positions(rows, 1), trips=(self.limit - 1, 1))

  def _think(
    self, stage: str, rows: int, group: int, *, with_start: bool, name: str = "think", layers: Sequence[int] | None = None
  ) -> StageStep:
    """The policy's own reasonings of a step, and what they were worth where training began."""
    model, sampling = self._model(layers), Sampling.create(temperature=1.0)
    generate = make_think(model, self.vocabulary, group=group, max_new_tokens=self.limit, constraint=self.constraint)

    def think(params: Any, slates: PackedSlates, edges: jax.Array, key: jax.Array, *start: Any) -> tuple[Any, ...]:
      found = generate(params, slates, edges, key, sampling)
      thoughts = Thoughts(found.completions, found.completion_mask)
      scored = (score_thoughts(model, of, slates, edges, thoughts, self.opening, constraint=self.constraint).log_probs for of in start)
      return (*thoughts, *scored)

    params = abstract_params(model)
    arguments = (params, Argument("batch", self._slates(rows)), self.edges, random_key(), *((params,) if with_start else ()))
    steps, positions = value_at(self.config, stage).steps, self._positions(rows, group)
    return StageStep(stage, name, think, arguments, steps, positions=positions, trips=(self.limit - 1, 1))

  def _model(self, layers: Sequence[int] | None = None, learns: bool = False) -> SlateScorer:
    dim = self.sizes.vector_dim
    return make_scorer(self.config, self.vocabulary, self.facts, self.config.evidence.bins, dim, layers=layers, learns=learns)

  @property
  def _past(self) -> int:
    return self.config.answer.past if self.config.answer.texts else 0

  def _slates(self, rows: int) -> PackedSlates:
    size, past, dim = self.sizes.candidates, self._past, self.sizes.vector_dim if self.config.answer.texts else 0
    facts, texts = shape(rows, size, len(self.facts)), (shape(rows, size, dim), shape(rows, past, dim))
    return PackedSlates(facts, flags(rows, size), flags(rows, past), *texts)

  def _of_slates(self, rows: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return shape(rows, self.sizes.candidates, dtype=dtype)

  def _thoughts(self, rows: int, group: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"thoughts": integers(rows, group, self.limit), "thought_mask": flags(rows, group, self.limit)}

  def _positions(self, rows: int, group: int) -> int:
    """Items and tokens that the model reads: a slate, and of each reasoning its opening, its tokens and the candidates once more."""
    size = self.sizes.candidates
    return rows * (self._past + size + group * (1 + self.limit + size))
