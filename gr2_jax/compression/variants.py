"""How each variant of the compressor is made, trained where it has to be."""

import functools
from collections.abc import Callable, Mapping, Sequence

from gr2_jax.compression.cache import CompressFn
from gr2_jax.compression.rewriter import make_rewriter
from gr2_jax.compression.rules import compress_by_rules, prompt_rows
from gr2_jax.compression.soft_token_training import make_soft_tokens
from gr2_jax.data.schema import Slate
from gr2_jax.runs.context import StageContext


def make_compress(stage: StageContext, variant: str) -> CompressFn:
  """What shortens histories by one of `rules.VARIANTS`, for the stage `compress`."""
  return _MAKERS[variant](stage)


def _make_rules(stage: StageContext, categories: bool) -> CompressFn:
  """Variant B, and without categories the baseline of semantic IDs alone."""

  def compress(slates: Sequence[Slate]) -> list[tuple[list[int], str]]:
    rows = [prompt_rows(slate, stage.prompts, stage.style) for slate in slates]
    budget = stage.options.budget
    tokens = [compress_by_rules(of, stage.prompts, stage.style, budget=budget, categories=categories) for of in rows]
    return [(of, "ok" if of else "no_history") for of in tokens]

  return compress


_MAKERS: Mapping[str, Callable[[StageContext], CompressFn]] = {
  "sids": functools.partial(_make_rules, categories=False),
  "rules": functools.partial(_make_rules, categories=True),
  "rewriter": make_rewriter,
  "soft_tokens": make_soft_tokens,
}
