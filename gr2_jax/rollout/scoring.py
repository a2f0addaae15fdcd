"""One-pass re-ranking: the probability that a direct answer names a candidate first; nothing is decoded (FIRST, arXiv 2406.15657)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gr2_jax.language.prompts import PromptStyle, direct_opening
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.cache import Prefix
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.generate import prefill


def answer_opening(vocabulary: Vocabulary, style: PromptStyle) -> list[int]:
  """Tokens between a prompt and the first reference of a direct answer. Raises ValueError for answers that are not compact."""
  if style.answer != "compact":
    raise ValueError(f"answer: one-pass scores are read at the first reference of compact answers, not of {style.answer}")
  opening = [] if style.direct else direct_opening(vocabulary, style)
  return [*opening, vocabulary.special("answer")]


def append_tokens(prompts: jax.Array, prompt_mask: jax.Array, tokens: Sequence[int]) -> tuple[jax.Array, jax.Array]:
  """Left-aligned prompts and mask `[P, Lp + n]` with the n `tokens` behind the last token of each row."""
  places = prompt_mask.astype(jnp.int32).sum(axis=1)[:, None] + jnp.arange(len(tokens))
  rows = jnp.arange(len(prompts))[:, None]

  def write(array, values):
    return jnp.pad(array, ((0, 0), (0, len(tokens)))).at[rows, places].set(values)

  return write(prompts, jnp.asarray(tokens, prompts.dtype)), write(prompt_mask, jnp.ones((), prompt_mask.dtype))


def score_candidates(
  decoder: Decoder,
  params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  references: jax.Array,
  prefix: Prefix | None = None,
  *,
  opening: Sequence[int],
) -> jax.Array:
  """Log-probability `[P, K]` (nats, float32) that the answer's first reference is each candidate's; -inf where there is no candidate.

  prompts, prompt_mask `[P, Lp]` left-aligned; references `[P, K, L]` the tokens that name the candidate at each slot, -1 where a slate
  has fewer than K; `opening` see `answer_opening`; `prefix` see `prefill`. A prompt is computed once, its K suffixes of L - 1 tokens
  attend to it.
  """
  num_prompts, size, length = references.shape
  rows = num_prompts * size
  last_hidden, prompt, lengths = prefill(decoder, params, *append_tokens(prompts, prompt_mask, opening), prefix)
  hidden = jnp.repeat(last_hidden, size, axis=0)[:, None]
  tokens = jnp.maximum(references, 0).reshape(rows, length)
  if length > 1:
    positions = jnp.repeat(lengths, size)[:, None] + jnp.arange(length - 1)
    suffix, _ = decoder.apply({"params": params}, tokens[:, :-1], positions, jnp.ones_like(tokens[:, :-1]), prefix=prompt)
    hidden = jnp.concatenate([hidden, suffix], axis=1)
  log_probs, _ = token_log_probs(lambda x: decoder.apply({"params": params}, x, method="logits"), hidden, tokens)
  return jnp.where(references[..., 0] >= 0, log_probs.sum(axis=-1).reshape(num_prompts, size), -jnp.inf)
