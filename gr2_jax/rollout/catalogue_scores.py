"""The mid-trained model as a retriever: beams over the trie as scores of catalogue items."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from gr2_jax.language.midtrain_tasks import next_item_prompt
from gr2_jax.language.prompts import PromptContext
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.beam import make_beam_search
from gr2_jax.semantic_ids.trie import SidTrie


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
  length = 2 + max_history * vocabulary.num_levels

  def scores(histories: np.ndarray) -> np.ndarray:
    prompts = np.full((len(histories), length), vocabulary.pad_id, np.int32)
    mask = np.zeros_like(prompts)
    for row, history in enumerate(histories):
      tokens = next_item_prompt(history[history >= 0].tolist(), context, max_history)
      prompts[row, : len(tokens)] = tokens
      mask[row, : len(tokens)] = 1
    _, log_probs, states = search(params, prompts, mask, device_trie, sid_tokens)
    table = np.full((len(histories), len(context.catalogue)), -np.inf, np.float32)
    for row, (line, line_states) in enumerate(zip(np.asarray(log_probs), np.asarray(states), strict=True)):
      for log_prob, state in zip(line, line_states, strict=True):
        table[row, trie.items_at(state)] = log_prob
    return table

  return scores
