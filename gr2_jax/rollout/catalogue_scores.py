"""The mid-trained model asked for the next item: scores of the whole catalogue, or of given items.

Of a model of tokens by beams over the trie, or code by code; of one of packed items by its dense head, by beams, or by both.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.data.slates import latest_rows, pad_rows
from gr2_jax.language.midtrain_tasks import next_item_prompt
from gr2_jax.language.prompts import PromptContext
from gr2_jax.models.packed_items import ItemTable, PackedItems, last_states, one_a_row
from gr2_jax.models.transformer import Decoder
from gr2_jax.numerics import filled_batches
from gr2_jax.rollout.beam import Beams, legal_log_probs, make_beam_search, packed_beam_search
from gr2_jax.rollout.completions import completion_hidden
from gr2_jax.semantic_ids.trie import CompressedTrie, DenseTrie, SidTrie


def make_beam_scores(
  decoder: Decoder, params: Any, context: PromptContext, *, beams: int, max_history: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Builds `scores(history rows [B, H], -1 = padding at the end) -> [B, N]`: log-probabilities of items, -inf where no beam ends.

  Items that share a semantic ID share its score. Only the last `max_history` items are read.
  """
  vocabulary = context.vocabulary
  trie = SidTrie.build(context.codes, vocabulary.codebook_size)
  search = make_beam_search(decoder, beams=beams, levels=vocabulary.num_levels)
  device_trie, sid_tokens = trie.on_device(), jnp.asarray(vocabulary.sid_token_ids)

  def scores(histories: np.ndarray) -> np.ndarray:
    prompts, mask = _render([history[history >= 0].tolist() for history in histories], context, max_history)
    _, log_probs, states = search(params, prompts, mask, device_trie, sid_tokens)
    return trie.spread(np.asarray(states), np.asarray(log_probs))

  return scores


def make_candidate_scores(
  decoder: Decoder, params: Any, context: PromptContext, *, max_history: int, batch_size: int
) -> Callable[[Sequence[Slate]], np.ndarray]:
  """Builds `scores(slates) -> [n, K]`: log-probability (nats) of each candidate as the next item, NaN where a slate has fewer than K.

  Those of all items of the catalogue sum to 1, as those of beams do; items that share a semantic ID share its score. Only the last
  `max_history` items are read. A slate's history is computed once, its candidates attend to it.
  """
  vocabulary, catalogue = context.vocabulary, context.catalogue
  trie, sid_tokens = SidTrie.build(context.codes, vocabulary.codebook_size).on_device(), jnp.asarray(vocabulary.sid_token_ids)

  @jax.jit
  def score(params: Any, prompts: jax.Array, mask: jax.Array, codes: jax.Array) -> jax.Array:
    return _score_codes(decoder, params, prompts, mask, codes, trie, sid_tokens)

  def scores(slates: Sequence[Slate]) -> np.ndarray:
    rows = pad_rows([catalogue.to_rows(slate.candidates) for slate in slates]).astype(np.int64)
    found = []
    for batch in filled_batches(len(slates), batch_size):
      prompts, mask = _render([catalogue.to_rows(slates[i].history) for i in batch.tolist()], context, max_history)
      found.append(np.asarray(score(params, prompts, mask, context.codes[rows[batch]])))
    return np.where(rows >= 0, np.concatenate(found)[: len(slates)], np.nan)

  return scores


def make_dense_scores(model: PackedItems, params: Any, table: ItemTable, *, max_history: int) -> Callable[[np.ndarray], np.ndarray]:
  """Builds `scores(history rows [B, H], -1 = padding at the end) -> [B, N]`: log-probability (nats) of every item as the next one.

  Only the last `max_history` items are read; a user without any gets NaN.
  """

  @jax.jit
  def score(params: Any, table: ItemTable, histories: jax.Array) -> jax.Array:
    states, vectors = model.apply({"params": params}, histories, table)
    log_probs = jax.nn.log_softmax((last_states(states, histories) @ vectors.T).astype(jnp.float32), axis=-1)
    return jnp.where(_is_known(histories), log_probs, jnp.nan)

  def scores(histories: np.ndarray) -> np.ndarray:
    return np.asarray(score(params, table, latest_rows(histories, max_history)))

  return scores


def make_packed_beam_scores(
  model: PackedItems, params: Any, table: ItemTable, *, beams: int, max_history: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Builds `scores(history rows [B, H], -1 = padding at the end) -> [B, N]`: as `make_beam_scores`, of a model of packed items.

  The semantic ID is written over the last item's position. A user without any item gets NaN.
  """
  trie = SidTrie.build(np.asarray(table.codes), model.codebook_size)
  device_trie = trie.on_device()

  @jax.jit
  def search(params: Any, table: ItemTable, trie: DenseTrie | CompressedTrie, histories: jax.Array) -> Beams:
    states, _ = model.apply({"params": params}, histories, table)
    return packed_beam_search(model, params, last_states(states, histories), trie, beams=beams)

  def scores(histories: np.ndarray) -> np.ndarray:
    past = latest_rows(histories, max_history)
    found = search(params, table, device_trie, past)
    return np.where(_is_known(past), trie.spread(np.asarray(found.states), np.asarray(found.log_probs)), np.nan)

  return scores


def reorder_beams(beams: np.ndarray, dense: np.ndarray, beam_weight: float = 0.0) -> np.ndarray:
  """Scores `[B, N]` of what beams found, in the order of the dense head; -inf elsewhere.

  `beams, dense [B, N]`: log-probabilities (nats) by `make_packed_beam_scores` and `make_dense_scores`; `beam_weight` times the former are
  added.
  """
  missed = beams == -np.inf
  return np.where(missed, -np.inf, dense + beam_weight * np.where(missed, 0.0, beams))  # 0 x -inf is no number


def make_packed_candidate_scores(
  model: PackedItems, params: Any, table: ItemTable
) -> Callable[[np.ndarray | jax.Array, np.ndarray | jax.Array], jax.Array]:
  """Builds `scores(histories [B, H], candidates [B, K]) -> [B, K]`: log-probability (nats) of each candidate among those of its slate.

  Catalogue rows, -1 behind them. What `make_dense_scores` gives, normalised over the slate, 0 behind a shorter one; but the items' vectors
  are computed once, and a batch computes no more than its own candidates. All candidates of a user without a past item are as likely.
  """
  vectors = jax.jit(lambda params, table: model.apply({"params": params}, table, method="item_vectors"))(params, table)

  @jax.jit
  def score(params: Any, vectors: jax.Array, histories: jax.Array, candidates: jax.Array) -> jax.Array:
    states = model.apply({"params": params}, one_a_row(histories), vectors, method="states")
    logits = jnp.einsum("bd,bkd->bk", last_states(states, histories), vectors[jnp.maximum(candidates, 0)]).astype(jnp.float32)
    real = candidates >= 0
    log_probs = jax.nn.log_softmax(jnp.where(real, jnp.where(_is_known(histories), logits, 0.0), -jnp.inf), axis=-1)
    return jnp.where(real, log_probs, 0.0)

  return functools.partial(score, params, vectors)


def _is_known(histories: Any) -> Any:
  """Whether there is a past item, `[B, 1]`."""
  return (histories >= 0).any(axis=1, keepdims=True)


def _render(histories: Sequence[Sequence[int]], context: PromptContext, max_history: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts and mask `[B, Lp]`, left-aligned, of histories of catalogue rows."""
  vocabulary = context.vocabulary
  length = len(next_item_prompt((), context, 0)) + max_history * vocabulary.num_levels
  prompts = np.full((len(histories), length), vocabulary.pad_id, np.int32)
  mask = np.zeros_like(prompts)
  for row, history in enumerate(histories):
    tokens = next_item_prompt(history, context, max_history)
    prompts[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = 1
  return prompts, mask


def _score_codes(
  decoder: Decoder,
  params: Any,
  prompts: jax.Array,
  mask: jax.Array,
  codes: jax.Array,
  trie: DenseTrie | CompressedTrie,
  sid_tokens: jax.Array,
) -> jax.Array:
  """Log-probability `[P, K]` of the semantic IDs `codes [P, K, L]` after prompts `[P, Lp]`, over those that the trie has."""
  levels = codes.shape[-1]
  tokens = jnp.stack([sid_tokens[level, codes[..., level]] for level in range(levels)], axis=-1)
  hidden = completion_hidden(decoder, params, prompts, mask, tokens, jnp.ones_like(tokens))
  states, total = jnp.zeros(codes.shape[:2], jnp.int32), jnp.zeros(codes.shape[:2])
  for level in range(levels):
    logits = decoder.apply({"params": params}, hidden[:, :, level], sid_tokens[level], method="logits")
    next_codes, next_states = trie.children(states, level)
    log_probs = legal_log_probs(jnp.take_along_axis(logits, next_codes, axis=-1), next_states >= 0)
    taken = (next_codes == codes[..., level, None]) & (next_states >= 0)
    total += jnp.where(taken, log_probs, 0.0).sum(axis=-1)
    states = jnp.where(taken, next_states, 0).sum(axis=-1)
  return total
