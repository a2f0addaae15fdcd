"""Stage `rl`: group rollouts on training slates, verifiable rewards, policy updates; the hacking monitors run at every step."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_records, check_training
from gr2_jax.data.schema import SPLITS
from gr2_jax.language.answers import bare_answer_length, render_answer
from gr2_jax.rl.options import GroupOptions
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import train_by_reward
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.training import TrainingOptions
from gr2_jax.settings import check_settings, read_record, setting, spread
from gr2_jax.teachers.sampling import Trace
from gr2_jax.training.state import OptimizerConfig

INIT = Init("rl.init", ("midtrain", "sft", "opd"))


@dataclasses.dataclass(frozen=True)
class RlStageOptions:
  """Reinforcement learning. Raises ValueError."""

  init: str = setting("sft", "the prior; midtrain for none. Stages that are not needed for it are left out", choices=INIT.choices)
  groups: GroupOptions = spread(GroupOptions())
  training: TrainingOptions = spread(TrainingOptions(100, OptimizerConfig(1e-4, warmup_steps=5), save_every=25, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Trains the policy of the stage `rl.init`; writes checkpoints."""
  options: RlStageOptions = stage.options
  learning = options.groups.to_rl(stage.config.decoding.max_new_tokens)
  train_by_reward(stage, learning, stage.style, stage.checkpoints(options.init))


def check(config: ConfigDict) -> None:
  """Rollout, reward, loss and optimizer."""
  check_records({"rl": lambda: read_record(RlStageOptions, config, "rl").groups.to_rl(config.decoding.max_new_tokens)}, config)
  check_training(config, "rl")


def foresee(stage: StageContext) -> list[str]:
  """An answer must fit into its limit, and where its end is not forced, what the policy was taught to say as well."""
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
  mode = "direct" if config.prompt.direct else "reason"
  return (
    PolicyRecord("rl", (RankerRecord("policy", "RL policy", mode, against=("midtrain", "lambdamart", "lambdamart_all", "sft", "opd")),)),
  )


STAGE = Stage(
  "rl",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "rl"),
  options=RlStageOptions,
  inputs=("data", "tokenize", "slates"),
  init=INIT,
  check=check,
  batches=batches,
  policies=policies,
  foresee=foresee,
)
