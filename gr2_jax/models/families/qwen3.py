"""Qwen3, dense (arXiv 2505.09388): queries and keys normalised by head."""

from typing import Any

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families.family import (
  LAYER,
  ONCE,
  QK_NORM,
  Family,
  Json,
  read_rope,
  read_scaling,
  read_shape,
  write_rope,
  write_shape,
)


def _read(config: Json) -> ModelConfig:
  if config.get("use_sliding_window"):
    raise ValueError("use_sliding_window: true is not computed for this family")
  base, scaling = read_rope(config, 10_000.0)
  return ModelConfig(**read_shape(config), rope_base=base, **read_scaling(scaling))


def _write(config: ModelConfig) -> dict[str, Any]:
  return write_shape(config) | {"hidden_act": "silu", **write_rope(config), "use_sliding_window": False}


FAMILY = Family("qwen3", "Qwen3ForCausalLM", "qwen3", _read, _write, ONCE, LAYER | QK_NORM)
