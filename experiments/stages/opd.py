"""Stage `opd`: on-policy distillation; a larger teacher scores the student's own rollouts (Eq 4)."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_records, check_training
from experiments.scored import check_free_reasons, check_reward, learn_from_teacher
from gr2_jax.errors import ConfigError
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.rl.options import PRESENTATIONS, CollectOptions, DecodeOptions, RewardOptions, read_rollout_options
from gr2_jax.rl.step import make_collector
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import make_stream, train_in_steps
from gr2_jax.runs.scored import is_reasoned, scored_mode
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.runs.teacher import check_teacher_config, load_scored_teacher, load_teacher
from gr2_jax.runs.training import TrainingOptions, begin
from gr2_jax.settings import check_settings, read_record, setting, spread
from gr2_jax.steps.opd import OpdConfig, make_opd_update
from gr2_jax.training.mesh import jit_update
from gr2_jax.training.state import OptimizerConfig

HEADLINE = ("reverse_kl", "beta", "reward", "recall@1", "valid_rate", "completion_length", "entropy")


INIT = Init("opd.init", ("midtrain", "sft", FROM_MODEL))


@dataclasses.dataclass(frozen=True)
class OpdStageOptions:
  """Learning from the teacher's scores; the stage runs where `rl.init` is opd. Raises ValueError."""

  teacher_run: str = setting("", "folder of the teacher's run, finished, on the same semantic IDs and vocabulary, of any size")
  teacher_stage: str = setting("rl", "the stage of that run whose policy is the teacher", choices=("rl", "sft"))
  init: str = setting(
    "midtrain", "the stage whose parameters the student starts from; from midtrain a scored policy starts anew", choices=INIT.choices
  )
  prompts: int = setting(16, "slates of a batch, over all processes", unit="slates", low=1)
  group: int = setting(8, "answers to a prompt, whose rewards are compared with each other", unit="answers", low=1)
  rankings: int = setting(8, "rankings drawn after each reasoning where answers are scored; their mean reward is the reasoning's", low=1)
  decode: DecodeOptions = spread(DecodeOptions())
  microbatches: int = setting(1, "parts of a gradient step, to save memory", low=1)
  temperature: float = setting(1.0, "temperature at which answers are drawn, and both models compared", above=0)
  distillation: DistillationConfig = setting(DistillationConfig(), "the reverse KL from the student to the teacher")
  reward_weight: float = setting(1.0, "weight of the ranking reward beside the reverse KL; 0: the teacher alone", low=0)
  clip_low: float = setting(0.2, "lower clip: the ratio of the trained to the sampling policy counts from 1 - clip_low on", low=0, below=1)
  clip_high: float = setting(0.28, "upper clip: that ratio counts up to 1 + clip_high", low=0)
  presentation: str = setting("shuffled", "the order in which candidates are shown", choices=PRESENTATIONS)
  reward: RewardOptions = setting(RewardOptions(), "what an answer earns")
  training: TrainingOptions = spread(TrainingOptions(100, OptimizerConfig(1e-3, warmup_steps=5), save_every=25, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)
    if self.prompts % self.microbatches:
      raise ValueError(f"prompts: {self.prompts} do not divide into {self.microbatches} microbatches; use a multiple")
    if self.group < 2 and self.reward_weight:
      raise ValueError(f"group: {self.group} must be at least 2, or reward_weight 0: rewards are compared within a group")
    self.update()

  def update(self) -> OpdConfig:
    """The record of the loss."""
    return OpdConfig(self.distillation, self.reward_weight, self.clip_low, self.clip_high, self.temperature, self.microbatches)

  def collect(self, max_new_tokens: int) -> CollectOptions:
    """No group is left out, whatever its rewards, since the teacher has something to say to every rollout: hard prompts count as well."""
    return CollectOptions(read_rollout_options(self, max_new_tokens), overlong_zone=self.decode.overlong_zone, dynamic_sampling=False)


def run(stage: StageContext) -> None:
  """Trains the mid-trained (or SFT) model on its own rollouts under the teacher's scores; writes checkpoints."""
  options: OpdStageOptions = stage.options
  if stage.config.answer.form == "scored":
    return _train_scored(stage)
  config, collect = options.update(), options.collect(stage.config.decoding.max_new_tokens)
  teacher, teacher_params = load_teacher(stage)
  begun = begin(stage, stage.decoder, stage.name, stage.start(options.init))
  constraint = stage.constraint(stage.style)
  update = make_opd_update(
    stage.decoder, teacher, begun.optimizer, config, steps=options.training.steps, constraint=constraint, join=begun.join
  )
  collector = make_collector(
    stage.decoder,
    make_stream(stage, stage.style, collect.rollout),
    collect,
    reward=options.reward.load(),
    loss=config.policy,
    constraint=constraint,
    mesh=stage.mesh,
    key=stage.key,
    whole=begun.whole,
  )
  compiled = jit_update(update, stage.mesh, begun.shardings, frozen=(*begun.frozen, teacher_params))
  train_in_steps(stage, begun, collector, compiled, HEADLINE)


def _train_scored(stage: StageContext) -> None:
  """On rankings drawn from the student's scores, after reasonings or none; from SFT's scores, or anew."""
  options: OpdStageOptions = stage.options
  learn_from_teacher(
    stage,
    load_scored_teacher(stage),
    options.update(),
    options.reward.builtin,
    init=stage.checkpoints("sft") if options.init == "sft" else None,
    batch_size=options.prompts,
    group=options.group,
    rankings=options.rankings,
    reasoned=is_reasoned(stage.config),
  )


def check(config: ConfigDict) -> None:
  """The teacher must be named where it is needed, and only there, and read the same tokens."""
  opd, used, options = config.opd, _is_used(config), read_record(OpdStageOptions, config, "opd")
  if used and config.answer.form == "scored":
    _check_scored(config)
  check_records({"opd": lambda: (options.collect(config.decoding.max_new_tokens), options.reward.load())}, config)
  check_training(config, "opd")
  if used and not opd.teacher_run:
    raise ConfigError("--config.opd.teacher_run: missing; name the directory of a finished run whose policy is the teacher")
  if opd.teacher_run and not used:
    raise ConfigError(f"--config.opd.teacher_run: set, but no stage reads it while rl.init is {config.rl.init!r}; set --config.rl.init=opd")
  if used:
    check_teacher_config(config)


def _check_scored(config: ConfigDict) -> None:
  """What scored answers are learnt by."""
  opd = config.opd
  if is_reasoned(config) and opd.init != "sft":
    raise ConfigError(f"--config.opd.init: {opd.init!r} leaves no scored policy that could reason; use sft, or set prompt.direct to True")
  if not is_reasoned(config) and opd.distillation.kl == "top_k":
    raise ConfigError("--config.opd.distillation.kl: 'top_k' is of a vocabulary, and a slate has few candidates; use exact or per_token")
  check_free_reasons(config, "opd")
  check_reward(config, "opd")
  if opd.microbatches != 1:
    raise ConfigError(f"--config.opd.microbatches: {opd.microbatches}, but a batch of scored answers is taken whole; set it to 1")


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
  if config.answer.form == "scored":
    return (PolicyRecord("opd", (RankerRecord("opd", "OPD policy", scored_mode(config), against=("sft",)),), prior=True, form="scored"),)
  return (PolicyRecord("opd", (RankerRecord("opd", "OPD policy", "direct" if config.prompt.direct else "reason"),), prior=True),)


STAGE = Stage(
  "opd",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "opd"),
  options=OpdStageOptions,
  inputs=("data", "tokenize", "slates", "evidence"),
  init=INIT,
  runs=(("opd.teacher_run", "opd.teacher_stage"),),
  check=check,
  batches=batches,
  policies=policies,
)
