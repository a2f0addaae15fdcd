"""Families of published decoders, a file each: what is in `FAMILIES` can be read, trained and written."""

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.families import gemma3, llama, qwen3
from gr2_jax.models.families.family import OUTPUT, Family, Tensor

FAMILIES: dict[str, Family] = {family.FAMILY.name: family.FAMILY for family in (qwen3, llama, gemma3)}


def family_of(config: ModelConfig) -> Family:
  """The family that publishes decoders of this kind."""
  return FAMILIES["gemma3" if config.local is not None else "qwen3" if config.qk_norm else "llama"]


__all__ = ["FAMILIES", "OUTPUT", "Family", "Tensor", "family_of"]
