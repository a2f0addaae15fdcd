"""Policies that write their answers: prompts of requests, and the engine that decodes or scores what stands behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

from gr2_jax.compression.compressor import HistoryCompressor
from gr2_jax.data.schema import DataError, Item
from gr2_jax.evidence.growing import Event
from gr2_jax.language.answers import reference_tokens
from gr2_jax.language.prompts import PromptContext, PromptStyle, direct_opening, history_room, present, render_prompt
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.rerank import round_length
from gr2_jax.serving.cold_start import ColdStart, read_items
from gr2_jax.serving.engine import Engine, Row, default_batch_sizes, default_prompt_lengths, style_of
from gr2_jax.serving.options import Options
from gr2_jax.serving.request import MODES, Request, RequestError, item_id


class WrittenPolicy:
  """A policy that reads prompts and writes orders, as a `Reranker` serves it."""

  def __init__(
    self,
    decoder: Decoder,
    params: Any,
    context: PromptContext,
    style: PromptStyle,
    *,
    max_new_tokens: int,
    options: Options = Options(),
    cold_start: ColdStart | None = None,
    compressor: HistoryCompressor | None = None,
  ):
    """`max_new_tokens`: the limit of reasoned answers. `compressor`: what shortens histories; soft tokens need parameters with a `memory`.
    All modes are served where the options name none, since nothing is known of the training.

    Raises DataError for a style without compact answers, and for reuse where the history comes first.
    """
    if style.answer != "compact":
      raise DataError(f"prompt.answer: serving decodes compact answers, which are permutations by construction, not {style.answer}")
    if options.prefix_cache and style.order != "candidates_first":
      raise DataError("prefix_cache: a slate can be reused only where it comes first; train with prompt.order='candidates_first'")
    names = context.vocabulary.num_candidates
    self.max_candidates = names if options.max_candidates is None else min(options.max_candidates, names)
    options = options.for_policy(("direct", "score", "reason") if style.direct else MODES)
    lengths, rest_lengths = _padded_lengths(options, style, len(direct_opening(context.vocabulary, style)), compressor, self.max_candidates)
    self.options = options
    self.context, self.style, self.compressor = context, style, compressor
    self.engine = Engine(
      decoder,
      params,
      context.vocabulary,
      style,
      max_new_tokens=max_new_tokens,
      batch_sizes=default_batch_sizes(options.batch_size),
      prompt_lengths=lengths,
      prefix_cache=options.prefix_cache,
      rest_lengths=rest_lengths,
    )
    self._cold_start = cold_start

  def warm_up(self) -> None:
    """Fits and compiles what the first new item would wait for."""
    if self._cold_start is not None:
      self._cold_start.warm_up()

  def read(self, request: Request, mode: str, presentations: int) -> tuple[list[Row], dict[str, Any]]:
    """One row for each presentation, and the ranking's fields that are known by now; raises RequestError."""
    candidates = tuple(map(item_id, request.candidates))
    context, past, new_items = read_items(request, self.context.catalogue.rows, self.context, self._extend)
    slate = request.to_slate(past)
    style = style_of(mode, self.style)
    codes = context.codes[context.catalogue.to_rows(candidates)]
    rows, history = [], None
    for number in range(presentations):
      # The same orders for every slate of a size, so that its presentations are reused like the upstream one.
      shown = present(len(candidates), "shuffled" if number else "upstream", (0, len(candidates), number))
      order = shown.tolist()
      try:
        if history is None and self.compressor is not None:
          history = self.compressor(slate.history, context, history_room(slate, context, style))
        prompt = render_prompt(slate, order, context, style, None if history is None else history.tokens)
      except DataError as error:
        raise RequestError("too_long", str(error)) from None
      shared = prompt.tokens.index(context.vocabulary.special("history")) if self.options.prefix_cache else 0
      rows.append(Row(prompt.tokens, shared, reference_tokens(order, context.vocabulary, style, codes), shown))
    fields = {
      "history_tokens": prompt.history_tokens,
      "dropped_history": prompt.dropped_history if history is None else history.dropped,
      "compressor": None if history is None else history.compressor,
      **new_items,
    }
    return rows, fields

  def reasoning(self, completion: list[int]) -> str | None:
    """The text of the reasoning that a completion begins with, None where it has none."""
    opening, closing = (self.context.vocabulary.special(name) for name in ("think", "/think"))
    if not completion or completion[0] != opening or closing not in completion:
      return None
    return self.context.vocabulary.decode(completion[1 : completion.index(closing)])

  def add_events(self, events: Sequence[Event]) -> None:
    """Raises RequestError."""
    raise RequestError("no_counts", "this policy writes its answers and counts no events; serve one that scores candidates by their facts")

  def _extend(self, items: Sequence[Item]) -> tuple[PromptContext, Mapping[str, str]]:
    if self._cold_start is None:
      raise DataError(f"unknown item {items[0].id!r}; this re-ranker places no new items")
    return self._cold_start.extend(items)


def _padded_lengths(
  options: Options, style: PromptStyle, opening: int, compressor: HistoryCompressor | None, max_candidates: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """To which lengths prompts are padded, and what follows a slate that is reused (none: the same); `opening`: tokens of a direct one's."""
  longest, given = style.max_prompt_tokens + opening, tuple(sorted(options.prompt_lengths))
  if given:
    if given[-1] < longest:
      raise DataError(f"prompt_lengths: the largest, {given[-1]}, must hold the longest prompt, which may have {longest} tokens")
    return given, ()
  if compressor is None:
    return default_prompt_lengths(longest), ()
  if options.prefix_cache:
    rest = compressor.budget + 2 + opening  # <history>, its tokens, <assistant>
    return default_prompt_lengths(longest), (round_length(rest),)
  # Slates are no shorter for it: a prompt with the most candidates may still be as long as it may be.
  return default_prompt_lengths(longest, longest - compressor.saving(max_candidates)), ()
