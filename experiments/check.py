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
  "direct.init": ("midtrain", "sft", "rl"),
  "prune.init": ("rl", "direct"),
  "direct.method": ("rl", "sft", "distil", "scores"),
  "evaluation.gain": ("exponential", "linear"),
}
# Sizes, wherever they stand in the config, that cannot be 0.
_SIZES = {
  *("attempts", "batch", "batch_size", "beams", "corpus_epochs", "epochs", "group", "log_every", "max_history", "max_new_tokens"),
  *("max_rounds", "max_skips", "microbatches", "minibatches", "num_candidates", "prompts", "report_every", "resamples", "row_length"),
  *("save_every", "text_pieces"),
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
  _check_direct(config)
  _check_prune(config)
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
  from gr2_jax.training.state import OptimizerConfig, make_optimizer

  rl = config.rl
  trained = {
    "midtrain": config.midtrain,
    "midtrain.warmup_rows": config.midtrain.warmup_rows,
    "sft": config.sft,
    "rl": rl,
    "direct": config.direct,
  }
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
  if config.direct.steps:
    by_reward = config.direct.method == "rl"
    batches["direct.prompts"] = config.direct.prompts // (config.rl.minibatches * config.rl.microbatches if by_reward else 1)
  if config.prune.layers and config.prune.steps:
    batches["prune.prompts"] = config.prune.prompts
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
