"""Completions read as rankings: compact answers by an automaton on the device, JSON answers by the host's parser, with one verdict."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.language.answers import VERDICTS, parse_answer
from gr2_jax.language.prompts import PromptContext, PromptStyle, direct_opening
from gr2_jax.language.vocabulary import Vocabulary


class ParsedAnswers(NamedTuple):
  """What completions say, int32: `rankings [P, G, K]` candidate indices best first (-1 where invalid, and past a shorter slate),
  `codes [P, G]` places in `language.answers.VERDICTS` (0 is valid), `reasoning_lengths [P, G]` in tokens. On the device or on the host.
  """

  rankings: Any
  codes: Any
  reasoning_lengths: Any


@functools.partial(jax.jit, static_argnames=("vocabulary", "style"))
def parse_compact(
  completions: jax.Array, references: jax.Array, shown: jax.Array, *, vocabulary: Vocabulary, style: PromptStyle
) -> ParsedAnswers:
  """Reads compact answers on the device, with the verdicts of `language.answers.parse_answer`, which is the specification.

  completions `[P, G, Lc]`; references `[P, K, L]` the tokens that name the candidate at each slot, -1 where a slate has fewer than K;
  shown `[P, K]` the candidate at each slot. It compiles once for a vocabulary, a style and the shapes.
  """
  one = functools.partial(_parse, vocabulary=vocabulary, style=style)
  return jax.vmap(jax.vmap(one, in_axes=(0, None, None)))(completions, references, shown)


def parse_completions(
  completions: jax.Array | np.ndarray,
  references: jax.Array | np.ndarray,
  shown: jax.Array | np.ndarray,
  slates: Sequence[Slate],
  context: PromptContext,
  style: PromptStyle,
) -> ParsedAnswers:
  """Answers `[P, G, Lc]` to slates, shown as `[P, K]` (see `rerank.pad_shown`); `references` are those of their `PromptBatch`.

  Compact answers stay on the device. JSON answers are parsed here and now, while the device does what it has been given to do.
  """
  if style.answer == "compact":
    return parse_compact(completions, references[:, : shown.shape[1]], shown, vocabulary=context.vocabulary, style=style)
  completions, shown = np.asarray(completions), np.asarray(shown)
  parsed = ParsedAnswers(
    rankings=np.full((*completions.shape[:2], shown.shape[1]), -1, np.int32),
    codes=np.zeros(completions.shape[:2], np.int32),
    reasoning_lengths=np.zeros(completions.shape[:2], np.int32),
  )
  for p, slate in enumerate(slates):
    codes = context.codes[context.catalogue.to_rows(slate.candidates)]
    for g, completion in enumerate(completions[p]):
      answer = parse_answer(completion, shown[p, : len(slate.candidates)], context.vocabulary, style, codes)
      parsed.codes[p, g] = VERDICTS.index(answer.error)
      parsed.reasoning_lengths[p, g] = answer.reasoning_length
      if answer.ranking is not None:
        parsed.rankings[p, g, : len(answer.ranking)] = answer.ranking
  return parsed


def _parse(tokens: jax.Array, references: jax.Array, shown: jax.Array, *, vocabulary: Vocabulary, style: PromptStyle) -> ParsedAnswers:
  """One completion `[Lc]`."""
  if style.direct:
    tokens = jnp.concatenate([jnp.array(direct_opening(vocabulary, style), tokens.dtype), tokens])
  limit, place, special = tokens.size, jnp.arange(tokens.size), vocabulary.special

  def first(flags: jax.Array) -> jax.Array:  # the limit where there is none
    return jnp.min(jnp.where(flags, place, limit))

  end = first(tokens == vocabulary.eos_id)
  thinks = tokens[0] == special("think")
  closing = first((tokens == special("/think")) & (place < end))
  content = (tokens >= 0) & (tokens < vocabulary.used_size) & ~jnp.isin(tokens, jnp.array(sorted(vocabulary.forbidden_ids)))
  thought = ~thinks | (closing < limit) & jnp.all(content | (place == 0) | (place >= closing))
  start = jnp.where(thinks, closing + 1, 0)
  framed = (end - start >= 2) & (tokens[start] == special("answer")) & (tokens[end - 1] == special("/answer"))

  size, length = references.shape
  count, rest = jnp.divmod(end - start - 2, length)
  number = max(size, (limit - 2) // length)
  asked = jnp.arange(number) < count
  mentions = tokens.at[start + 1 + jnp.arange(number * length)].get(mode="fill", fill_value=-1).reshape(number, length)
  low, high = _reference_bounds(vocabulary, style)
  well_formed = (rest == 0) & jnp.all(((mentions >= low) & (mentions < high)) | ~asked[:, None])

  same = asked[:, None] & jnp.all(mentions[:, None] == references, axis=-1)  # [mention, slot]
  twins = jnp.all(references[:, None] == references, axis=-1)
  known = jnp.all(~asked | jnp.any(same, axis=1))
  not_repeated = jnp.all(jnp.sum(same, axis=0) <= jnp.sum(twins, axis=0))
  # Of the slots that share a reference, its n-th mention means the n-th.
  turn, order = jnp.cumsum(same[:size], axis=0) - 1, jnp.sum(jnp.tril(twins, -1), axis=1)
  slots = jnp.argmax(same[:size] & (turn == order), axis=1)

  num_candidates = jnp.sum(references[:, 0] >= 0)
  verdicts = {  # the first that applies
    "overlong": end == limit,
    "wrong_format": ~(thought & framed & well_formed),
    "unknown_item": ~known,
    "repeated": ~not_repeated,
    "missing": count < num_candidates,
  }
  code = jnp.select(list(verdicts.values()), [VERDICTS.index(kind) for kind in verdicts], 0)
  ranking = jnp.where((code == 0) & (jnp.arange(size) < num_candidates), shown[slots], -1)
  reasoning_length = jnp.where((end < limit) & thinks & thought, closing - 1, 0)
  return ParsedAnswers(*(x.astype(jnp.int32) for x in (ranking, code, reasoning_length)))


def _reference_bounds(vocabulary: Vocabulary, style: PromptStyle) -> tuple[np.ndarray, np.ndarray]:
  """Ids `low <= id < high` that may stand at each place of a reference, `[L]` each."""
  if style.reference == "slot":
    return np.array([vocabulary.candidate_start]), np.array([vocabulary.sid_start])
  low, size = vocabulary.sid_token_ids[:, 0], np.full(vocabulary.num_levels, vocabulary.codebook_size)
  if style.sid_markers:
    low = np.array([vocabulary.special("sid"), *low, vocabulary.special("/sid")])
    size = np.array([1, *size, 1])
  return low, low + size
