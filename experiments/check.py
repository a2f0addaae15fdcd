"""Values that some stage could not use, found before anything is written instead of after an hour of training."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.flags import ConfigError

_PRESENTATIONS = ("upstream", "shuffled")
_CHOICES = {
  "data.on_error": ("stop", "skip"),
  "tokenize.last_level": ("random", "independent", "nearest"),
  "slates.source": ("log", "ctr", "beam"),
  "decoding.constraint": ("none", "slate"),
  "traces.sampling": ("rejection", "targeted"),
  "traces.presentation": _PRESENTATIONS,
  "sft.presentation": _PRESENTATIONS,
  "rl.presentation": _PRESENTATIONS,
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
    value = _value_at(config, key)
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
  if not config.get("distributed"):  # else the devices are not there yet
    _check_devices(config)


def _check_pairs(config: ConfigDict) -> None:
  """Values that are right alone and wrong together."""
  sft, rl, slates = config.sft, config.rl, config.slates
  if not 0 <= sft.reasoning_weight < sft.answer_weight:
    raise ConfigError(
      f"--config.sft.reasoning_weight: {sft.reasoning_weight} must be below answer_weight {sft.answer_weight} (Eq 3: λ_r < λ_o)"
    )
  if rl.prompts % (rl.minibatches * rl.microbatches):
    raise ConfigError(
      f"--config.rl.prompts: {rl.prompts} do not divide into {rl.minibatches} minibatches of {rl.microbatches} microbatches; use a multiple"
    )
  if not 0 < rl.min_filled <= 1:
    raise ConfigError(f"--config.rl.min_filled: {rl.min_filled} must be above 0 and at most 1")
  if rl.group < 2:
    raise ConfigError(f"--config.rl.group: {rl.group} must be at least 2: an answer is judged by the others of its group")
  if not 0 <= rl.overlong_zone <= rl.max_new_tokens:
    raise ConfigError(f"--config.rl.overlong_zone: {rl.overlong_zone} tokens do not fit into max_new_tokens {rl.max_new_tokens}")
  if config.decoding.constraint == "slate" and config.prompt.answer != "compact":
    raise ConfigError(f"--config.decoding.constraint: 'slate' is for compact answers, not for {config.prompt.answer}; set it to none")
  named = config.tokenize.num_candidates
  if slates.source != "log" and slates.size > named:
    raise ConfigError(
      f"--config.slates.size: {slates.size}, but only {named} candidates have names; raise --config.tokenize.num_candidates"
    )


def _check_compressor(config: ConfigDict) -> None:
  """Variants that there are, a budget that holds an item, and a judge that can be asked."""
  from experiments.compression import VARIANTS
  from gr2_jax.language.compress import check_budget

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
  from gr2_jax.semantic_ids.rqvae import RqVaeConfig
  from gr2_jax.steps.rl import RlConfig
  from gr2_jax.steps.tokenizer import TokenizerConfig
  from gr2_jax.teachers.chat import ChatConfig
  from gr2_jax.training.state import OptimizerConfig, make_optimizer

  rl, rewriter = config.rl, config.compressor.rewriter
  trained = {"midtrain": config.midtrain, "midtrain.warmup_rows": config.midtrain.warmup_rows, "sft": config.sft, "rl": rl}
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
    "rl.reward": lambda: RewardConfig(**rl.reward).to_options(),
    "rl.loss": lambda: PolicyLossConfig(**rl.loss),
    "rl": lambda: RlConfig(temperature=rl.temperature),
    "compressor.rewriter": lambda: RlConfig(temperature=rewriter.temperature),
    "compressor.rewriter.loss": lambda: PolicyLossConfig(**rewriter.loss),
    "compressor.rewriter.chat": lambda: ChatConfig(**rewriter.chat),
  }


def _check_devices(config: ConfigDict) -> None:
  """The mesh must fit the machine, and each batch the mesh."""
  from gr2_jax.training.mesh import make_mesh

  try:
    shape = make_mesh(**config.mesh).shape
  except ValueError as error:
    raise ConfigError(f"--config.mesh: {error}") from None
  parts = shape["data"] * shape["fsdp"]
  batches = {
    "midtrain.batch_size": config.midtrain.batch_size,
    "sft.batch_size": config.sft.batch_size,
    "rl.prompts": config.rl.prompts // config.rl.minibatches // config.rl.microbatches,
  }
  if config.compressor.variants:
    rewriter, slots = config.compressor.rewriter, config.compressor.slots
    batches |= {
      "compressor.rewriter.warmup.batch_size": rewriter.warmup.batch_size,
      "compressor.rewriter.prompts": rewriter.prompts,
      "compressor.slots.batch_size": slots.batch_size,
    }
  for key, rows in batches.items():
    if rows % parts:
      raise ConfigError(f"--config.{key}: {rows} rows at once do not divide over the {parts} parts of the mesh (data x fsdp)")


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(dotted key, value) of everything that is no section."""
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _value_at(config: ConfigDict, key: str) -> Any:
  for part in key.split("."):
    config = config[part]
  return config
