"""What stages use to say that a value of the config cannot be used: the message names the key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.settings import name_faults
from gr2_jax.training.state import OptimizerConfig, make_optimizer


def check_records(records: Mapping[str, Callable[[], Any]], config: ConfigDict) -> None:
  """Builds what the library makes of the sections at dotted keys; an error of one becomes a ConfigError that names its key."""
  for key, build in records.items():
    try:
      build()
    except (ValueError, ConfigError) as error:
      raise ConfigError("\n".join(name_faults(error, key, list(value_at(config, key))))) from None


def check_training(config: ConfigDict, key: str) -> None:
  """Raises ConfigError for an optimizer that the training at a dotted key could not use."""
  section = value_at(config, key)
  if section.steps:
    steps = section.steps * section.get("minibatches", 1)
    check_records({f"{key}.optimizer": lambda: make_optimizer(OptimizerConfig(**section.optimizer), steps)}, config)


def check_targets(config: ConfigDict, key: str) -> None:
  """Raises ConfigError for targets of the tree that the stage `evidence` is not told to ask."""
  targets = value_at(config, key).targets
  if targets in ("tree", "mixture") and not config.evidence.tree.enabled:
    raise ConfigError(f"--config.{key}.targets: {targets!r} needs the tree's scores; set evidence.tree.enabled to True, or use label")


def list_faults(faults: Sequence[str], verdict: str) -> ConfigError:
  """The error of one fault, or of several: so many settings, the verdict on them, and a line each."""
  return ConfigError(faults[0] if len(faults) == 1 else f"{len(faults)} settings {verdict}:\n  " + "\n  ".join(faults))
