"""Stage `opd`: on-policy distillation; a larger teacher scores the student's own rollouts (Eq 4)."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_choice, check_records, check_training
from gr2_jax.errors import ConfigError
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.rl.options import CollectOptions, read_reward, read_rollout_options
from gr2_jax.rl.step import make_collector
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import make_stream, train_in_steps
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.teacher import check_teacher_config, load_teacher
from gr2_jax.runs.training import begin
from gr2_jax.steps.opd import OpdConfig, make_opd_update
from gr2_jax.training.mesh import jit_update

HEADLINE = ("reverse_kl", "beta", "reward", "recall@1", "valid_rate", "completion_length", "entropy")


def run(stage: StageContext) -> None:
  """Trains the mid-trained (or SFT) model on its own rollouts under the teacher's scores; writes checkpoints."""
  options, config, collect = stage.options, read_update(stage.options), read_collect(stage.config)
  teacher, teacher_params = load_teacher(stage)
  optimizer, state, shardings = begin(stage, stage.decoder, stage.name, stage.checkpoints(options.init))
  constraint = stage.constraint(stage.style)
  update = make_opd_update(stage.decoder, teacher, optimizer, config, steps=options.steps, constraint=constraint)
  collector = make_collector(
    stage.decoder,
    make_stream(stage, stage.style, collect.rollout),
    collect,
    reward=read_reward(options.reward),
    loss=config.policy,
    constraint=constraint,
    mesh=stage.mesh,
    key=stage.key,
  )
  train_in_steps(stage, state, collector, jit_update(update, stage.mesh, shardings, frozen=(teacher_params,)), HEADLINE)


def read_update(section: ConfigDict) -> OpdConfig:
  """The record of the loss; raises ValueError for values that cannot hold."""
  names = ("reward_weight", "clip_low", "clip_high", "temperature", "microbatches")
  return OpdConfig(DistillationConfig(**section.distillation), **{name: section[name] for name in names})


def read_collect(config: ConfigDict) -> CollectOptions:
  """The teacher has something to say to every rollout: no group is left out, whatever its rewards, so hard prompts count like easy ones."""
  rollout = read_rollout_options(config.opd, config.decoding.max_new_tokens)
  return CollectOptions(rollout, overlong_zone=config.opd.overlong_zone, dynamic_sampling=False)


def check(config: ConfigDict) -> None:
  """The teacher must be named where it is needed, and only there, and read the same tokens."""
  opd, used = config.opd, _is_used(config)
  check_choice(config, "opd.teacher_stage", ("rl", "sft"))
  records = {"opd": lambda: (read_update(opd), read_collect(config)), "opd.reward": lambda: read_reward(opd.reward)}
  check_records(records)
  check_training(config, "opd")
  if used and not opd.teacher_run:
    raise ConfigError("--config.opd.teacher_run is missing: name the directory of a finished run whose policy is the teacher")
  if opd.teacher_run and not used:
    raise ConfigError(
      f"--config.opd.teacher_run is set, but no stage reads it while rl.init is {config.rl.init!r}; set --config.rl.init=opd"
    )
  if opd.prompts % opd.microbatches:
    raise ConfigError(f"--config.opd.prompts: {opd.prompts} do not divide into {opd.microbatches} microbatches; use a multiple")
  if opd.group < 2 and opd.reward_weight:
    raise ConfigError(f"--config.opd.group: {opd.group} must be at least 2, or reward_weight 0: rewards are compared within a group")
  if used:
    check_teacher_config(config)


def _is_used(config: ConfigDict) -> bool:
  return config.rl.init == "opd" or (config.direct.enabled and config.direct.init == "opd")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Prompts of a step, and those decoded at a time."""
  opd = config.opd
  if not _is_used(config):
    return {}
  at_a_time = {} if opd.decode_prompts is None else {"opd.decode_prompts": (opd.decode_prompts, 1)}
  return {"opd.prompts": (opd.prompts, opd.microbatches)} | at_a_time


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The student."""
  return (PolicyRecord("opd", (RankerRecord("opd", "OPD policy", "direct" if config.prompt.direct else "reason"),), prior=True),)


STAGE = Stage(
  "opd",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "opd"),
  inputs=("data", "tokenize", "slates"),
  init=Init("opd.init", ("midtrain", "sft")),
  runs=(("opd.teacher_run", "opd.teacher_stage"),),
  check=check,
  batches=batches,
  policies=policies,
)
