"""Compressed histories of requests: what a run's compressor makes of a history, made once for a user who asks again."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.compression.cache import history_key, open_histories
from gr2_jax.compression.rules import compress_by_rules, fit_soft_tokens
from gr2_jax.compression.soft_tokens import soft_token_ids
from gr2_jax.language.prompts import PromptContext, PromptStyle, history_items
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.load import prompt_style
from gr2_jax.runs.run import Run, RunError

_HISTORIES = 4096  # that are remembered
_SAMPLE = 256  # items from whose length a prompt's is estimated


class Compressed(NamedTuple):
  """What stands in the prompt instead of a history, which variant made it, and how many of the history's items it leaves out."""

  tokens: tuple[int, ...]
  compressor: str
  dropped: int


class HistoryCompressor:
  """Compresses histories by one variant of `compression.rules.VARIANTS` into `budget` tokens; several threads may call it.

  `context`: the run's own, without new items. `texts`: the rewriter's, by `history_key`. `per_item`: soft tokens of an item. A history of
  known items is remembered, the least recently used one forgotten.
  """

  def __init__(
    self,
    variant: str,
    context: PromptContext,
    style: PromptStyle,
    *,
    budget: int,
    per_item: int = 1,
    texts: Mapping[str, Sequence[int]] | None = None,
  ) -> None:
    self.variant, self.budget = variant, budget
    self._context, self._style, self._per_item = context, style, per_item
    self._texts = {} if texts is None else texts
    self._remembered = functools.lru_cache(_HISTORIES)(lambda history: self._compress(history, context, budget))

  @classmethod
  def load(cls, run: Run, variant: str, context: PromptContext) -> "HistoryCompressor":
    """The compressor of a run that has this variant."""
    options, texts = run.config.compress, {}
    if variant == "rewriter":
      cache = open_histories(run, variant)
      texts = {key: cache[key]["tokens"] for key in cache if cache[key]["outcome"] == "ok"}
    return cls(variant, context, prompt_style(run), budget=options.budget, per_item=options.soft_tokens.per_item, texts=texts)

  @property
  def reuse(self) -> tuple[int, int]:
    """How many histories were remembered when they were asked for, and how many were not."""
    info = self._remembered.cache_info()
    return info.hits, info.misses

  def __call__(self, history: tuple[str, ...], context: PromptContext, room: int) -> Compressed:
    """The history (ids, oldest first) in `budget` tokens, or in `room` where that is less; `context` may have new items."""
    known = self._context.catalogue.rows
    if any(item not in known for item in history):
      # The codes of new items depend on what else is in their request.
      return self._compress(history, context, min(self.budget, room))
    found = self._remembered(history)
    return found if len(found.tokens) <= room else self._compress(history, context, room)

  def saving(self, max_candidates: int) -> int:
    """Tokens that are saved of a history as long as prompts of `max_candidates` show, for items of the catalogue's mean length."""
    items = self._context.catalogue.items
    sample = range(0, len(items), max(len(items) // _SAMPLE, 1))

    def mean_length(fields: tuple[str, ...]) -> float:
      return float(np.mean([len(self._context.item_tokens(row, fields, self._style)) for row in sample]))

    style = self._style
    room = style.max_prompt_tokens - max_candidates * mean_length(style.item_fields)
    return max(int(min(style.max_history * mean_length(style.history_fields), room)) - self.budget, 0)

  def _compress(self, history: tuple[str, ...], context: PromptContext, budget: int) -> Compressed:
    rows = context.catalogue.to_rows(history)
    latest = rows[-self._style.max_history :]
    if self.variant == "soft_tokens":
      encoded = len(self._context.catalogue)
      kept = fit_soft_tokens([row for row in latest if row < encoded], budget, self._per_item)
      return Compressed(tuple(soft_token_ids(kept, self._per_item).tolist()), "soft_tokens", len(rows) - len(kept))
    text = self._texts.get(history_key(history)) if self.variant == "rewriter" else None
    if text is not None and len(text) <= budget:
      read = history_items(rows, context, self._style, self._style.max_prompt_tokens)
      return Compressed(tuple(text), "rewriter", len(rows) - len(read))
    vocabulary = context.vocabulary
    tokens: list[int] = []
    if budget >= vocabulary.num_levels + 2 * self._style.sid_markers:
      tokens = compress_by_rules(latest, context, self._style, budget=budget, categories=self.variant != "sids")
    number = sum(token >= vocabulary.sid_start for token in tokens) // vocabulary.num_levels
    named = set(list(dict.fromkeys(reversed(latest)))[:number])
    return Compressed(tuple(tokens), "sids" if self.variant == "sids" else "rules", sum(row not in named for row in rows))


def compressors_of(run: Run) -> tuple[str, ...]:
  """The variants by which a run has compressed histories; none where its stage `compress` is not finished."""
  return tuple(run.config.compress.variants) if run.is_done("compress") else ()


def check_compressor(run: Run, variant: str) -> None:
  """Raises RunError unless the run has that variant, whole."""
  known = compressors_of(run)
  if variant not in known:
    has = f"choose from {', '.join(known)}" if known else "it has none: run the stage compress with config.compress.variants"
    raise RunError(f"compressor: {run.directory} has no {variant!r}; {has}")
  check_intact(run, "compress")
