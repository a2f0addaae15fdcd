"""Beam search over the catalogue: only semantic IDs that exist are spelled, and every prompt is computed once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import prefill, suffix_cache


def _legal_log_probs(logits: jax.Array, legal: jax.Array) -> jax.Array:
  """Log-softmax over the legal codes, -inf at the others; a row without legal codes is -inf throughout, never NaN."""
  finite = jnp.where(legal, logits, -1e30)
  return jnp.where(legal, jax.nn.log_softmax(finite, axis=-1), -jnp.inf)


def _reorder(cache, parents: jax.Array):
  """Give every beam the cache of the beam that it continues. `parents [P, beams]` index beams of the same prompt."""
  beams = parents.shape[1]
  rows = (jnp.arange(parents.shape[0])[:, None] * beams + parents).reshape(-1)
  return cache.replace(k=cache.k[:, rows], v=cache.v[:, rows], mask=cache.mask[rows])


def beam_search(
  decoder: Decoder,
  params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  trie_next_state: jax.Array,
  sid_token_ids: jax.Array,
  *,
  beams: int,
  levels: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The `beams` most probable semantic IDs of the trie after each prompt `[P, Lp]`, best first.

  `trie_next_state [S, C]` int32 (-1 absent, root 0), `sid_token_ids [>= levels, C]` the vocabulary's token of each level's code.
  Each step's probabilities are normalised over the codes that the trie allows next, so that the probabilities of all items sum to 1.
  Returns `codes [P, beams, levels]`, their `log_probs [P, beams]` and the trie's `states [P, beams]` reached (leaves, which name items).
  Where a prompt has fewer than `beams` semantic IDs the rest have codes and state -1 and log-probability -inf.
  Equal scores keep the order of beams, then codes.
  """
  num_prompts = prompts.shape[0]
  rows = num_prompts * beams
  num_codes = trie_next_state.shape[1]

  def to_logits(hidden):
    return decoder.apply({"params": params}, hidden, method="logits")

  last_hidden, prefix, prompt_lengths = prefill(decoder, params, prompts, prompt_mask)
  positions = jnp.repeat(prompt_lengths, beams)[:, None]
  cache = suffix_cache(decoder, rows, max(levels - 1, 1))
  # Before the first code all beams are the same: only the first of them lives, at the root.
  first = jnp.broadcast_to(jnp.arange(beams) == 0, (num_prompts, beams))
  states = jnp.where(first, 0, -1)
  log_probs = jnp.where(first, 0.0, -jnp.inf)
  logits = jnp.repeat(to_logits(last_hidden)[:, None, sid_token_ids[0]], beams, axis=1)
  codes = jnp.zeros((num_prompts, beams, 0), jnp.int32)

  for level in range(levels):
    if level > 0:
      tokens = sid_token_ids[level - 1, codes[:, :, -1].reshape(rows, 1)]
      hidden, cache = decoder.apply({"params": params}, tokens, positions + level - 1, jnp.ones_like(tokens), prefix=prefix, cache=cache)
      logits = to_logits(hidden[:, 0])[:, sid_token_ids[level]].reshape(num_prompts, beams, num_codes)
    next_states = jnp.where(states[..., None] >= 0, trie_next_state[jnp.maximum(states, 0)], -1)
    scores = log_probs[..., None] + _legal_log_probs(logits, next_states >= 0)
    log_probs, chosen = jax.lax.top_k(scores.reshape(num_prompts, -1), beams)
    parents, code = chosen // num_codes, chosen % num_codes
    states = jnp.take_along_axis(next_states.reshape(num_prompts, -1), chosen, axis=1)
    codes = jnp.concatenate([jnp.take_along_axis(codes, parents[..., None], axis=1), code[..., None]], axis=-1)
    cache = _reorder(cache, parents)
  return jnp.where(states[..., None] >= 0, codes, -1), log_probs, states


def make_beam_search(decoder: Decoder, *, beams: int, levels: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """Compile `beam_search` for fixed sizes: `(params, prompts, prompt_mask, trie_next_state, sid_token_ids) -> (codes, log_probs, states)`.

  Raises ValueError for sizes below 1.
  """
  for name, value in {"beams": beams, "levels": levels}.items():
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")

  @jax.jit
  def run(params, prompts, prompt_mask, trie_next_state, sid_token_ids):
    return beam_search(decoder, params, prompts, prompt_mask, trie_next_state, sid_token_ids, beams=beams, levels=levels)

  return run
