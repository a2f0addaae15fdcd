"""Beam search over the catalogue: only semantic IDs that exist are spelled, and every prompt or packed history is computed once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.models.cache import Cache
from gr2_jax.models.packed_items import PackedItems
from gr2_jax.models.transformer import Decoder
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.rollout.generate import prefill, suffix_cache
from gr2_jax.semantic_ids.trie import CompressedTrie, DenseTrie


def legal_log_probs(logits: jax.Array, legal: jax.Array) -> jax.Array:
  """Log-softmax over the legal codes, -inf at the others; a row without legal codes is -inf throughout, never NaN."""
  finite = jnp.where(legal, logits, OUT_OF_REACH)
  return jnp.where(legal, jax.nn.log_softmax(finite, axis=-1), -jnp.inf)


class Beams(NamedTuple):
  """Prefixes of semantic IDs: `codes [P, W, levels so far]`, `log_probs [P, W]` and the trie's `states [P, W]`."""

  codes: jax.Array
  log_probs: jax.Array
  states: jax.Array


def _root(num_prompts: int) -> Beams:
  """A prompt starts with one beam, at the root, and has more only once there are so many continuations."""
  return Beams(jnp.zeros((num_prompts, 1, 0), jnp.int32), jnp.zeros((num_prompts, 1)), jnp.zeros((num_prompts, 1), jnp.int32))


def _extend(found: Beams, logits: jax.Array, trie: DenseTrie | CompressedTrie, beams: int) -> tuple[Beams, jax.Array]:
  """The best prefixes of one code more by `logits [P, W, C]`, and which beam each of them continues, `parents [P, W']`."""
  num_prompts = len(found.states)
  next_codes, next_states = trie.children(found.states, found.codes.shape[-1])
  scores = found.log_probs[..., None] + legal_log_probs(jnp.take_along_axis(logits, next_codes, axis=-1), next_states >= 0)
  width = scores.shape[-1]
  next_codes, next_states, scores = (x.reshape(num_prompts, -1) for x in (next_codes, next_states, scores))
  log_probs, chosen = jax.lax.top_k(scores, min(beams, scores.shape[1]))
  parents = chosen // width
  code = jnp.take_along_axis(next_codes, chosen, axis=1)
  codes = jnp.concatenate([jnp.take_along_axis(found.codes, parents[..., None], axis=1), code[..., None]], axis=-1)
  return Beams(codes, log_probs, jnp.take_along_axis(next_states, chosen, axis=1)), parents


def _fill(found: Beams, beams: int) -> Beams:
  """Codes and states -1 and log-probability -inf where a catalogue has fewer IDs than beams."""

  def pad(x: jax.Array, value: float) -> jax.Array:
    return jnp.pad(x, [(0, 0), (0, beams - x.shape[1])] + [(0, 0)] * (x.ndim - 2), constant_values=value)

  codes, log_probs, states = found
  return Beams(pad(jnp.where(states[..., None] >= 0, codes, -1), -1), pad(log_probs, -jnp.inf), pad(states, -1))


def _reorder(cache: Cache, parents: jax.Array) -> Cache:
  """Give every beam the cache of the beam that it continues. `parents [P, beams]` index beams of the same prompt."""
  num_prompts = parents.shape[0]
  rows = (jnp.arange(num_prompts)[:, None] * (cache.mask.shape[0] // num_prompts) + parents).reshape(-1)
  return Cache(cache.k[:, rows], cache.v[:, rows], cache.mask[rows], cache.positions[rows], cache.length)


def beam_search(
  decoder: Decoder,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  trie: DenseTrie | CompressedTrie,
  sid_token_ids: jax.Array,
  *,
  beams: int,
  levels: int,
) -> Beams:
  """The `beams` most probable semantic IDs of the trie after each prompt `[P, Lp]`, best first.

  `sid_token_ids [>= levels, C]` are the vocabulary's tokens of each level's codes; the trie has at least `levels` levels.
  Each step's probabilities are normalised over the codes that the trie allows next, so that the probabilities of all items sum to 1.
  Returns `codes [P, beams, levels]`, their `log_probs [P, beams]` and the trie's `states [P, beams]` reached (leaves, which name items).
  Where a prompt has fewer than `beams` semantic IDs the rest have codes and state -1 and log-probability -inf.
  Equal scores keep the order of beams, then codes.
  """
  num_prompts = prompts.shape[0]
  hidden, prefix, prompt_lengths = prefill(decoder, params, prompts, prompt_mask)
  cache = suffix_cache(decoder, num_prompts, max(levels - 1, 1))
  found = _root(num_prompts)
  for level in range(levels):
    if level > 0:
      tokens = sid_token_ids[level - 1, found.codes[:, :, -1]].reshape(-1, 1)
      positions = jnp.repeat(prompt_lengths + level - 1, found.states.shape[1])[:, None]
      hidden, cache = decoder.apply({"params": params}, tokens, positions, jnp.ones_like(tokens), prefix=prefix, cache=cache)
    logits = decoder.apply({"params": params}, hidden, sid_token_ids[level], method="logits").reshape(*found.states.shape, -1)
    found, parents = _extend(found, logits, trie, beams)
    cache = _reorder(cache, parents)
  return _fill(found, beams)


def packed_beam_search(model: PackedItems, params: Any, states: jax.Array, trie: DenseTrie | CompressedTrie, *, beams: int) -> Beams:
  """The `beams` most probable semantic IDs of the trie, written by a model of packed items from its states `[P, D]`; as `beam_search`."""
  found = _root(len(states))
  for _ in range(model.levels):
    logits = model.apply({"params": params}, states[:, None], found.codes, method="next_code_logits")
    found, _ = _extend(found, logits, trie, beams)
  return _fill(found, beams)


def make_beam_search(decoder: Decoder, *, beams: int, levels: int) -> Callable[..., Beams]:
  """Compile `beam_search` for fixed sizes: `(params, prompts, prompt_mask, trie, sid_token_ids) -> (codes, log_probs, states)`.

  Raises ValueError for sizes below 1.
  """
  for name, value in {"beams": beams, "levels": levels}.items():
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")

  @jax.jit
  def run(params: Any, prompts: jax.Array, prompt_mask: jax.Array, trie: DenseTrie | CompressedTrie, sid_token_ids: jax.Array) -> Beams:
    return beam_search(decoder, params, prompts, prompt_mask, trie, sid_token_ids, beams=beams, levels=levels)

  return run
