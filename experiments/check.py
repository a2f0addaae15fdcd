"""Values that some stage could not use, found before anything is written instead of after an hour of training."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError
from gr2_jax.runs.run import value_at

_PRESENTATIONS = ("upstream", "shuffled")
_CHOICES = {
  "data.on_error": ("stop", "skip"),
  "tokenize.last_level": ("random", "independent", "nearest"),
  "slates.source": ("log", "ctr", "beam"),
  "decoding.constraint": ("none", "slate"),
  "traces.sampling": ("rejection", "targeted"),
  "traces.presentation": _PRESENTATIONS,
  "sft.presentation": _PRESENTATIONS,
  "opd.init": ("midtrain", "sft"),
  "opd.teacher_stage": ("rl", "sft"),
  "opd.presentation": _PRESENTATIONS,
  "rl.init": ("midtrain", "sft", "opd"),
  "rl.presentation": _PRESENTATIONS,
  "direct.init": ("midtrain", "sft", "opd", "rl"),
  "prune.init": ("rl", "direct"),
  "direct.method": ("rl", "sft", "distil", "scores"),
  "compressor.rewriter.judge": ("ranker", "chat"),
  "compressor.rewriter.metric": ("auc", "ndcg"),
  "evaluation.gain": ("exponential", "linear"),
}
# Sizes, wherever they stand in the config, that cannot be 0.
_SIZES = {
  *("attempts", "batch", "batch_size", "beams", "corpus_epochs", "epochs", "group", "log_every", "max_history", "max_new_tokens"),
  *("max_rounds", "max_skips", "microbatches", "minibatches", "num_candidates", "per_item", "prompts", "report_every", "resamples"),
  *("row_length", "save_every", "text_pieces"),
}


def check_values(config: ConfigDict) -> None:
  """Raises ConfigError naming the key of a value that is out of range, unknown, or does not go with another one."""
  for key, value in _leaves(config):
    if key.rpartition(".")[2] in _SIZES and value < 1:
      raise ConfigError(f"--config.{key}: {value} must be at least 1")
  for key, choices in _CHOICES.items():
    value = value_at(config, key)
    if value not in choices:
      raise ConfigError(f"--config.{key}: {value!r} is not known; choose {' or '.join(choices)}")
  for key, build in _records(config).items():
    try:
      build()
    except ValueError as error:
      raise ConfigError(f"--config.{key}: {error}") from None
  _check_pairs(config)
  if config.compressor.variants:
    _check_compressor(config)
  _check_devices(config)


def _check_pairs(config: ConfigDict) -> None:
  """Values that are right alone and wrong together."""
  sft, rl, slates = config.sft, config.rl, config.slates
  if not 0 <= sft.compressed_share <= 1:
    raise ConfigError(f"--config.sft.compressed_share: {sft.compressed_share} must be a share, 0 to 1")
  if not 0 <= sft.reasoning_weight < sft.answer_weight:
    raise ConfigError(
      f"--config.sft.reasoning_weight: {sft.reasoning_weight} must be below answer_weight {sft.answer_weight} (Eq 3: λ_r < λ_o)"
    )
  if rl.prompts % (rl.minibatches * rl.microbatches):
    raise ConfigError(
      f"--config.rl.prompts: {rl.prompts} do not divide into {rl.minibatches} minibatches of {rl.microbatches} microbatches; "
      f"make rl.prompts a multiple of {rl.minibatches * rl.microbatches}"
    )
  _check_opd(config)
  _check_direct(config)
  _check_prune(config)
  if not 0 < rl.min_filled <= 1:
    raise ConfigError(f"--config.rl.min_filled: {rl.min_filled} must be above 0 and at most 1")
  if rl.group < 2:
    raise ConfigError(f"--config.rl.group: {rl.group} must be at least 2: an answer is judged by the others of its group")
  for name in ("rl", "opd"):
    _check_rollout(name, config[name])
  if config.decoding.constraint == "slate" and config.prompt.answer != "compact":
    raise ConfigError(f"--config.decoding.constraint: 'slate' is for compact answers, not for {config.prompt.answer}; set it to none")
  named = config.tokenize.num_candidates
  if slates.source != "log" and slates.size > named:
    raise ConfigError(
      f"--config.slates.size: {slates.size}, but only {named} candidates have names; raise --config.tokenize.num_candidates"
    )


def _check_rollout(name: str, options: ConfigDict) -> None:
  if options.slots < 0:
    raise ConfigError(f"--config.{name}.slots: {options.slots} must be at least 0 (all prompts at once)")
  if not 0 <= options.rows <= options.group:
    raise ConfigError(f"--config.{name}.rows: {options.rows} must lie between 0 (all at once) and the group of {options.group}")
  if not 0 <= options.overlong_zone <= options.max_new_tokens:
    zone, limit = options.overlong_zone, options.max_new_tokens
    raise ConfigError(f"--config.{name}.overlong_zone: {zone} tokens do not fit into max_new_tokens {limit}")


def _runs_opd(config: ConfigDict) -> bool:
  return config.rl.init == "opd" or (config.direct.steps > 0 and config.direct.init == "opd")


def _check_opd(config: ConfigDict) -> None:
  """The teacher must be named where it is needed, and only there, and read the same tokens."""
  from gr2_jax.runs.teacher import check_teacher_config

  opd, used = config.opd, _runs_opd(config)
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


def _check_direct(config: ConfigDict) -> None:
  direct, rl = config.direct, config.rl
  if not direct.steps:
    return
  if direct.method == "rl" and direct.prompts % (rl.minibatches * rl.microbatches):
    raise ConfigError(
      f"--config.direct.prompts: {direct.prompts} do not divide into rl's {rl.minibatches} minibatches of {rl.microbatches} microbatches"
    )
  if direct.method in ("sft", "distil") and direct.init == "midtrain":
    raise ConfigError(f"--config.direct.init: {direct.method!r} learns from the answers or the reasoning of init; choose sft or rl")
  if direct.method in ("distil", "scores") and config.prompt.answer != "compact":
    raise ConfigError(f"--config.direct.method: {direct.method!r} is for compact answers, not for {config.prompt.answer}")


def _check_prune(config: ConfigDict) -> None:
  from gr2_jax.models.config import PRESETS, preset

  prune = config.prune
  if config.model.preset in PRESETS and not 0 <= prune.layers <= (depth := preset(config.model.preset, 128).num_layers):
    raise ConfigError(f"--config.prune.layers: {prune.layers} of the {depth} layers of {config.model.preset} cannot be kept")
  if prune.layers and prune.init == "direct" and not config.direct.steps:
    raise ConfigError("--config.prune.init: there is no direct policy to prune; give --config.direct.steps, or prune rl")


def _check_compressor(config: ConfigDict) -> None:
  """Variants that there are, a budget that holds an item, and a judge that can be asked."""
  from gr2_jax.compression.rules import VARIANTS, check_budget

  options = config.compressor
  unknown = [variant for variant in options.variants if variant not in VARIANTS]
  if unknown:
    raise ConfigError(f"--config.compressor.variants: {unknown[0]!r} is not known; choose from {', '.join(VARIANTS)}")
  if "test" not in options.splits:
    raise ConfigError("--config.compressor.splits: the evaluation needs 'test' among them")
  codes = config.tokenize.rqvae.levels + 2 * config.prompt.sid_markers
  try:
    check_budget(options.budget, max(codes, options.slots.per_item) if "slots" in options.variants else codes)
  except ValueError as error:
    raise ConfigError(f"--config.compressor.{error}") from None
  rewriter = options.rewriter
  if not (len(rewriter.alpha) == 2 and all(0 <= alpha <= 1 for alpha in rewriter.alpha)):
    raise ConfigError(f"--config.compressor.rewriter.alpha: {rewriter.alpha} must be two weights in 0..1, at the first and the last step")
  if rewriter.group < 2:
    raise ConfigError(
      f"--config.compressor.rewriter.group: {rewriter.group} must be at least 2: a text is judged by the others of its group"
    )
  if "rewriter" in options.variants and config.get("distributed"):
    # The ranker would judge other texts in every process, which one program over all of them cannot.
    raise ConfigError("--config.compressor.variants: the rewriter is trained in one process; run the stage compress without distributed")
  if rewriter.judge == "chat" and not (rewriter.chat.url and rewriter.chat.model):
    raise ConfigError("--config.compressor.rewriter.chat: give the url and the model of the endpoint, or set judge=ranker")
  if options.slots.optimizer.rule == "muon":
    raise ConfigError("--config.compressor.slots.optimizer.rule: muon knows the matrices of the decoder alone; use adamw")


def _records(config: ConfigDict) -> Mapping[str, Callable[[], Any]]:
  """Config key -> how the library reads what stands there; each record checks itself."""
  from gr2_jax.language.midtrain_tasks import Mixture
  from gr2_jax.language.prompts import PromptStyle
  from gr2_jax.models.config import preset
  from gr2_jax.objectives.policy import PolicyLossConfig
  from gr2_jax.rewards.verifiable import RewardConfig
  from gr2_jax.runs.teacher import opd_config
  from gr2_jax.semantic_ids.rqvae import RqVaeConfig
  from gr2_jax.steps.rl import RlConfig
  from gr2_jax.steps.tokenizer import TokenizerConfig
  from gr2_jax.teachers.chat import ChatConfig
  from gr2_jax.training.state import OptimizerConfig, make_optimizer

  rl, opd, direct, rewriter = config.rl, config.opd, config.direct, config.compressor.rewriter
  trained = {"midtrain": config.midtrain, "midtrain.warmup_rows": config.midtrain.warmup_rows}
  trained |= {"sft": config.sft, "opd": opd, "rl": rl, "direct": direct}
  compressors = {
    "compressor.rewriter.warmup": rewriter.warmup,
    "compressor.rewriter": rewriter,
    "compressor.slots": config.compressor.slots,
  }
  trained |= compressors if config.compressor.variants else {}
  optimizers = {
    f"{name}.optimizer": lambda options=options: make_optimizer(
      OptimizerConfig(**options.optimizer), options.steps * options.get("minibatches", 1)
    )
    for name, options in trained.items()
    if options.steps
  }
  return optimizers | {
    "tokenize.rqvae": lambda: RqVaeConfig(**config.tokenize.rqvae),
    "tokenize.training": lambda: TokenizerConfig(**config.tokenize.training),
    "model.preset": lambda: preset(config.model.preset, 128),
    "midtrain.mixture": lambda: Mixture(**config.midtrain.mixture),
    "prompt": lambda: PromptStyle(**config.prompt),
    "opd": lambda: opd_config(opd),
    "opd.reward": lambda: RewardConfig(**opd.reward).to_options(),
    "rl.reward": lambda: RewardConfig(**rl.reward).to_options(),
    "rl.loss": lambda: PolicyLossConfig(**rl.loss),
    "rl": lambda: RlConfig(temperature=rl.temperature, packed_rows=rl.packed_rows),
    "compressor.rewriter": lambda: RlConfig(temperature=rewriter.temperature),
    "compressor.rewriter.loss": lambda: PolicyLossConfig(**rewriter.loss),
    "compressor.rewriter.chat": lambda: ChatConfig(**rewriter.chat),
  }


def _check_devices(config: ConfigDict) -> None:
  """The mesh must fit the machine and its processes, and each batch the mesh. Groups need divide nothing: they go with their prompt."""
  import jax

  from gr2_jax.training.mesh import make_mesh

  if config.get("distributed") and not jax.distributed.is_initialized():
    return  # the other processes are not there yet; a run checks again once they are
  try:
    shape = make_mesh(**config.mesh).shape
  except ValueError as error:
    raise ConfigError(f"--config.mesh: {error}") from None
  parts, processes = shape["data"] * shape["fsdp"], jax.process_count()
  if parts % processes:
    raise ConfigError(
      f"--config.mesh: {parts} parts (data x fsdp) do not divide over {processes} processes, each of which feeds its own share of a batch; "
      f"make mesh.data x mesh.fsdp a multiple of {processes}"
    )
  rl = config.rl
  batches = {
    "midtrain.batch_size": (config.midtrain.batch_size, 1),
    "sft.batch_size": (config.sft.batch_size, 1),
    "rl.prompts": (rl.prompts, rl.minibatches * rl.microbatches),
    "rl.slots": (rl.slots, 1),
  }
  if _runs_opd(config):
    batches |= {"opd.prompts": (config.opd.prompts, config.opd.microbatches), "opd.slots": (config.opd.slots, 1)}
  if config.direct.steps:
    batches["direct.prompts"] = (config.direct.prompts, rl.minibatches * rl.microbatches if config.direct.method == "rl" else 1)
  if config.prune.layers and config.prune.steps:
    batches["prune.prompts"] = (config.prune.prompts, 1)
  if config.compressor.variants:
    rewriter, slots = config.compressor.rewriter, config.compressor.slots
    batches |= {
      "compressor.rewriter.warmup.batch_size": (rewriter.warmup.batch_size, 1),
      "compressor.rewriter.prompts": (rewriter.prompts, 1),
      "compressor.slots.batch_size": (slots.batch_size, 1),
    }
  for key, (rows, cuts) in batches.items():
    if rows % (cuts * parts):
      in_cuts = " in each of minibatches x microbatches" if cuts > 1 else ""
      raise ConfigError(
        f"--config.{key}: {rows // cuts} rows at once{in_cuts} do not divide over the {parts} parts of the mesh (mesh.data x mesh.fsdp); "
        f"make {key} a multiple of {cuts * parts}, or the mesh smaller"
      )


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of everything that is no section."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value
