"""What stages use to say that a value of the config cannot be used: the message names the key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rl.options import read_reward, read_rl_options
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.training.state import OptimizerConfig, make_optimizer


def check_choice(config: ConfigDict, key: str, choices: Sequence[str]) -> None:
  """Raises ConfigError unless the value at a dotted key is one of the choices."""
  value = value_at(config, key)
  if value not in choices:
    raise ConfigError(f"--config.{key}: {value!r} is not known; choose {' or '.join(choices)}")


def check_records(records: Mapping[str, Callable[[], Any]]) -> None:
  """Builds what the library makes of the sections at dotted keys; an error of one becomes a ConfigError that names its key."""
  for key, build in records.items():
    try:
      build()
    except (ValueError, ConfigError) as error:
      raise ConfigError(f"--config.{key}: {error}") from None


def check_training(config: ConfigDict, key: str) -> None:
  """Raises ConfigError for an optimizer that the training at a dotted key could not use."""
  section = value_at(config, key)
  if section.steps:
    steps = section.steps * section.get("minibatches", 1)
    check_records({f"{key}.optimizer": lambda: make_optimizer(OptimizerConfig(**section.optimizer), steps)})


def check_learning(config: ConfigDict, key: str) -> None:
  """Raises ConfigError, with the key of the part, for a reward, a loss or a rollout that learning from groups could not use."""
  section = value_at(config, key)
  check_records(
    {
      f"{key}.loss": lambda: PolicyLossConfig(**section.loss),
      key if section.reward.fn else f"{key}.reward": lambda: read_reward(section.reward),
      key: lambda: read_rl_options(section, config.decoding.max_new_tokens),
    }
  )


def check_at_least_one(config: ConfigDict, *keys: str) -> None:
  """Raises ConfigError for a size below 1 at one of the dotted keys; None stands for no limit."""
  for key in keys:
    value = value_at(config, key)
    if value is not None and value < 1:
      raise ConfigError(f"--config.{key}: {value} must be at least 1")
