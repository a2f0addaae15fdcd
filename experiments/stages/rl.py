"""Stage `rl`: group rollouts on training slates, verifiable rewards, policy updates; the hacking monitors run at every step."""

import dataclasses
import functools
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_records, check_training
from experiments.scored import check_reward
from gr2_jax.data.schema import SPLITS
from gr2_jax.errors import ConfigError
from gr2_jax.evaluation.held_out import likelihood_of_labels, quality_of_order, reward_of_order
from gr2_jax.language.answers import bare_answer_length, render_answer
from gr2_jax.models.scorer import SlateScorer
from gr2_jax.rewards.own import RewardFn
from gr2_jax.rewards.slate import SlateRewardConfig, make_slate_reward
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rl.options import GroupOptions
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.feedback import FeedbackOptions, read_feedback
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import train_by_reward
from gr2_jax.runs.scored import (
  is_reasoned,
  make_own_thoughts,
  make_truth_judge,
  scored_mode,
  thought_constraint,
  train_scored,
)
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.runs.training import TrainingOptions
from gr2_jax.settings import check_settings, read_record, setting, spread, to_section
from gr2_jax.steps.scored import (
  THROUGH,
  ScoredLoss,
  make_reasoned_reward_loss,
  make_reasoned_target_loss,
  make_reward_loss,
  make_target_loss,
)
from gr2_jax.teachers.sampling import Trace
from gr2_jax.training.state import OptimizerConfig

_SCORED_HEADLINE = ("reward", "recall@1", "near_identity_rate", "kept_fraction", "entropy")
INIT = Init("rl.init", ("midtrain", "sft", "opd", FROM_MODEL))
_OF_SCORED = ("through", "slate.top", "feedback.source", "feedback.share", "feedback.weighing")


@dataclasses.dataclass(frozen=True)
class RlStageOptions:
  """Reinforcement learning. Raises ValueError."""

  init: str = setting(
    "sft", "the stage whose policy RL starts from; midtrain: no prior. Stages that are not needed for it are left out", choices=INIT.choices
  )
  control: bool = setting(
    False, "whether scored answers have a control beside RL: cross-entropy on the labels, from the same start, on the same slates and steps"
  )
  rankings: int = setting(8, "rankings drawn after each reasoning where answers are scored; their mean reward is the reasoning's", low=2)
  anchor: float = setting(
    0.1, "scored answers: weight of the divergence of the reasoning's tokens from those of the start, which keeps them legible", low=0
  )
  truth_weight: float = setting(
    0.0, "scored answers: what a reasoning earns besides, times the share of its statements that is true by the evidence table", low=0
  )
  named_weight: float = setting(
    0.0,
    "scored answers: what a reasoning earns besides where the candidate that it calls the best is scored the highest",
    low=0,
  )
  through: str = setting(
    "whole",
    "what of a scored ranking is learnt: all of it, or its beginning through the last positive candidate, behind which no reward of the "
    "positives' places looks",
    choices=THROUGH,
  )
  slate: SlateRewardConfig = setting(SlateRewardConfig(), "scored answers: a reward of their first places and of the slate that these make")
  feedback: FeedbackOptions = setting(FeedbackOptions(), "scored answers: what RL and its control are told of slates")
  groups: GroupOptions = spread(GroupOptions())
  training: TrainingOptions = spread(TrainingOptions(100, OptimizerConfig(1e-4, warmup_steps=5), save_every=25, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)


_DEFAULTS = ConfigDict(to_section(RlStageOptions()))


def run(stage: StageContext) -> None:
  """Trains the policy of the stage `rl.init`; writes checkpoints."""
  options: RlStageOptions = stage.options
  if stage.config.answer.form == "scored":
    return _train_scored(stage)
  learning = options.groups.to_rl(stage.config.decoding.max_new_tokens)
  train_by_reward(stage, learning, stage.style, stage.start(options.init))


def _train_scored(stage: StageContext) -> None:
  """RL on rankings drawn from scores, after reasonings or none, and its control by supervision, which is told the same."""
  options, groups, reasoned = stage.options, stage.options.groups, is_reasoned(stage.config)
  told, held_out = (read_feedback(stage, split, options.feedback, options.slate.small_share) for split in ("train", "validation"))
  learning = functools.partial(
    train_scored,
    stage,
    batch_size=groups.prompts,
    validation=held_out.slates,
    reasoned=reasoned,
    init=stage.checkpoints(options.init),
    drop_out=False,  # the answers that are judged are the policy's own
  )
  reward, opening = _reward(options), stage.vocabulary.special("think")
  drawing = {"temperature": groups.temperature, "divide_by": groups.loss.divide_by, "through": options.through}

  def by_reward(model: SlateScorer) -> ScoredLoss:
    if reasoned:
      return make_reasoned_reward_loss(
        model,
        opening,
        reward,
        rankings=options.rankings,
        anchor=options.anchor,
        constraint=thought_constraint(stage.run),
        truth_weight=options.truth_weight,
        named_weight=options.named_weight,
        **drawing,
      )
    return make_reward_loss(model, reward, group=groups.group, **drawing)

  judge = make_truth_judge(stage, told.records) if options.truth_weight or options.named_weight else None
  think = make_own_thoughts(stage, group=groups.group, judge=judge) if reasoned else None
  quality = quality_of_order(held_out.labels, held_out.slates.weights)
  if not isinstance(reward, RewardConfig):
    quality = reward_of_order(reward, held_out.arrays, held_out.slates.weights)
  learning(by_reward, slates=told.slates, learnt=told.arrays, score=quality, headline=_SCORED_HEADLINE, think=think, anchored=reasoned)
  if options.control:
    by_labels = functools.partial(make_reasoned_target_loss, opening=opening) if reasoned else make_target_loss
    think = make_own_thoughts(stage, group=groups.group) if reasoned else None
    targets, weights = told.supervise(by_gains=options.slate.top is not None)
    # Of whole slates and weighed clicks both are chosen by what the reward pays, lest the choice of a step be what differs.
    score = likelihood_of_labels(held_out.labels, held_out.slates.weights) if isinstance(reward, RewardConfig) else quality
    slates = dataclasses.replace(told.slates, weights=weights)
    learning(by_labels, slates=slates, learnt={"targets": targets}, score=score, name="control", think=think)


def _reward(options: RlStageOptions) -> RewardConfig | RewardFn:
  """Of first places where they earn, else that of the section `reward`."""
  return options.groups.reward.builtin if options.slate.top is None else make_slate_reward(options.slate)


def check(config: ConfigDict) -> None:
  """Rollout, reward, loss and optimizer."""
  for name in ("truth_weight", "named_weight"):
    if config.rl[name] and not is_reasoned(config):
      raise ConfigError(
        f"--config.rl.{name}: {config.rl[name]} is of reasonings before scored answers; set it to 0, or answer.form to scored and "
        "prompt.direct to False"
      )
  if config.answer.form == "scored":
    _check_scored(config)
  else:
    for key in _OF_SCORED:
      if value_at(config.rl, key) != value_at(_DEFAULTS, key):
        raise ConfigError(
          f"--config.rl.{key}: {value_at(config.rl, key)!r} is of scored answers; leave it out, or set answer.form to scored"
        )
  check_records({"rl": lambda: read_record(RlStageOptions, config, "rl").groups.to_rl(config.decoding.max_new_tokens)}, config)
  check_training(config, "rl")


def _check_scored(config: ConfigDict) -> None:
  """What scored answers are learnt by."""
  if config.rl.init == "midtrain":
    raise ConfigError("--config.rl.init: 'midtrain' leaves no scored policy to start from; use sft or opd")
  if config.rl.through == "target" and config.rl.reward.condition == "eq7":
    raise ConfigError(
      "--config.rl.through: 'target', but eq7 asks whether an answer is a copy, which is seen behind the target too; use whole, or another "
      "reward.condition"
    )
  if config.rl.slate.top is not None and config.rl.through == "target":
    raise ConfigError("--config.rl.through: 'target', but rl.slate looks at all of the first places; use whole, or leave slate.top out")
  check_reward(config, "rl")
  _check_feedback(config)
  for name in ("minibatches", "microbatches"):
    if config.rl[name] != 1:
      raise ConfigError(f"--config.rl.{name}: {config.rl[name]}, but a batch of scored answers is one gradient step; set it to 1")


def _check_feedback(config: ConfigDict) -> None:
  """Clicks come of a market that knows utilities, and what is weighed is a gain."""
  feedback = config.rl.feedback
  if feedback.source == "clicks" and (config.data.source != "synthetic" or config.slates.source != "log"):
    raise ConfigError("--config.rl.feedback.source: 'clicks' are drawn from the utilities of a synthetic market's own slates; use labels")
  if feedback.weighing == "propensity" and config.rl.slate.top is None:
    raise ConfigError(
      "--config.rl.feedback.weighing: 'propensity', but the rewards of rl.reward are of ranks or normalised, which no weighing makes "
      "unbiased; set rl.slate.top, or weighing to none"
    )


def foresee(stage: StageContext) -> list[str]:
  """An answer must fit into its limit, and where its end is not forced, what the policy was taught to say as well."""
  if stage.config.answer.form == "scored":
    return []
  style, limit, vocabulary = stage.style, stage.config.decoding.max_new_tokens, stage.vocabulary
  longest = max((len(slate.candidates) for split in SPLITS for slate in stage.slates(split)), default=0)
  if style.direct or not longest:
    return []
  key, need = "--config.decoding.max_new_tokens", bare_answer_length(longest, vocabulary, style)
  if need > limit:
    return [
      f"{key}: {limit} tokens are too few for an answer about {longest} candidates, which takes {need} without any reasoning; raise it"
    ]
  taught = [_taught_length(stage, trace) for trace in (stage.foreseen.traces if stage.foreseen else ())]
  if taught and min(taught) > limit and stage.constraint(style) is None:
    return [f"{key}: {limit} tokens are too few for the answers that are taught, which take {min(taught)} to {max(taught)}; raise it"]
  return []


def _taught_length(stage: StageContext, trace: Trace) -> int:
  """Tokens of the completion that a trace teaches."""
  codes = stage.prompts.codes[stage.catalogue.to_rows(stage.slates("train")[trace.slate_index].candidates)]
  assert trace.ranking is not None
  return len(render_answer(trace.ranking, trace.shown, trace.reasoning, stage.vocabulary, stage.style, codes).tokens)


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Prompts of a step, and those decoded at a time."""
  rl = config.rl
  at_a_time = {} if rl.decode_prompts is None else {"rl.decode_prompts": (rl.decode_prompts, 1)}
  return {"rl.prompts": (rl.prompts, rl.minibatches * rl.microbatches)} | at_a_time


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The RL policy."""
  if config.answer.form == "scored":
    against = ("midtrain", "lambdamart", "lambdamart_all", "sft", "opd", "rl_control")
    mode = scored_mode(config)
    policy = PolicyRecord("rl", (RankerRecord("policy", "RL policy", mode, against=against),), form="scored")
    control = RankerRecord("rl_control", "cross-entropy control", mode, against=("sft", "opd"))
    return (policy, PolicyRecord("rl", (control,), "control", form="scored")) if config.rl.control else (policy,)
  mode = "direct" if config.prompt.direct else "reason"
  return (
    PolicyRecord("rl", (RankerRecord("policy", "RL policy", mode, against=("midtrain", "lambdamart", "lambdamart_all", "sft", "opd")),)),
  )


def unused(config: ConfigDict) -> tuple[str, ...]:
  """What only scored policies read that reason first, and what is said of feedback and of the slate that is not used."""
  slate, feedback = config.rl.slate, config.rl.feedback
  used = {
    "rl.anchor": is_reasoned(config),
    "rl.slate.small_share": bool(slate.small_brands),
    "rl.feedback.decay": feedback.source == "clicks",
    "rl.feedback.clip": feedback.weighing == "propensity",
  }
  return tuple(key for key, is_used in used.items() if not is_used)


STAGE = Stage(
  "rl",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "rl"),
  options=RlStageOptions,
  inputs=("data", "tokenize", "slates", "evidence"),
  init=INIT,
  unused=unused,
  check=check,
  batches=batches,
  policies=policies,
  foresee=foresee,
)
