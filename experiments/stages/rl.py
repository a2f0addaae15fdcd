"""Stage `rl`: group rollouts on training slates, verifiable rewards, policy updates; the hacking monitors run at every step."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_learning, check_training
from gr2_jax.rl.options import read_rl_options
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import train_by_reward
from gr2_jax.runs.stages import Init, Stage


def run(stage: StageContext) -> None:
  """Trains the policy of the stage `rl.init`; writes checkpoints."""
  options = read_rl_options(stage.options, stage.config.decoding.max_new_tokens)
  train_by_reward(stage, options, stage.style, stage.checkpoints(stage.options.init))


def check(config: ConfigDict) -> None:
  """Rollout, reward, loss and optimizer."""
  check_learning(config, "rl")
  check_training(config, "rl")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Prompts of a step, and those decoded at a time."""
  rl = config.rl
  at_a_time = {} if rl.decode_prompts is None else {"rl.decode_prompts": (rl.decode_prompts, 1)}
  return {"rl.prompts": (rl.prompts, rl.minibatches * rl.microbatches)} | at_a_time


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The RL policy."""
  mode = "direct" if config.prompt.direct else "reason"
  return (PolicyRecord("rl", (RankerRecord("policy", "RL policy", mode, against=("lambdamart", "lambdamart_all", "sft", "opd")),)),)


STAGE = Stage(
  "rl",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "rl"),
  inputs=("data", "tokenize", "slates"),
  init=Init("rl.init", ("midtrain", "sft", "opd")),
  check=check,
  batches=batches,
  policies=policies,
)
