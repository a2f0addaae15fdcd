"""Llama 3 (arXiv 2407.21783) and what has its shape, such as SmolLM2: no norms of queries and keys, rescaled rotary frequencies."""

from typing import Any

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families.family import LAYER, ONCE, Family, Json, read_rope, read_scaling, read_shape, write_rope, write_shape


def _read(config: Json) -> ModelConfig:
  base, scaling = read_rope(config, 10_000.0)
  return ModelConfig(**read_shape(config), rope_base=base, qk_norm=False, **read_scaling(scaling))


def _write(config: ModelConfig) -> dict[str, Any]:
  return write_shape(config) | {"hidden_act": "silu", "mlp_bias": False, **write_rope(config)}


FAMILY = Family("llama", "LlamaForCausalLM", "llama", _read, _write, ONCE, LAYER)
