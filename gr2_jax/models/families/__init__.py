"""Families of published decoders, a file each: what is in `FAMILIES` can be read, trained and written."""

from gr2_jax.models.families import gemma3, llama, qwen3
from gr2_jax.models.families.family import OUTPUT, Family, Tensor

FAMILIES: dict[str, Family] = {family.FAMILY.name: family.FAMILY for family in (qwen3, llama, gemma3)}

__all__ = ["FAMILIES", "OUTPUT", "Family", "Tensor"]
