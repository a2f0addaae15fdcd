"""The copy automaton: free text in which semantic IDs stand whole, and only those that the prompt shows.

A rewritten history must copy semantic IDs exactly, or it earns nothing (GR2 §5.1 as we read it); a small model that copies badly would
never earn a reward to learn from. As with the slate automaton, log-probabilities are normalised over the legal tokens in sampling and in
the loss alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rollout.legal_tokens import TokenState, mask_illegal

_FREE, _FIRST, _TEXT, _CODES, _EOS = range(5)


class CopyConstraint:
  """The automaton of a vocabulary, for prompts with at most `max_items` semantic IDs; what is written is not empty and ends in time."""

  def __init__(self, vocabulary: Vocabulary, max_items: int) -> None:
    self.max_items, self.levels = max_items, vocabulary.num_levels
    self.sid_start, self.codebook_size = vocabulary.sid_start, vocabulary.codebook_size
    self.vocabulary_size = vocabulary.size
    text = np.arange(vocabulary.size) < vocabulary.new_token_start
    text[list(vocabulary.forbidden_ids)] = False
    legal = np.zeros((5, vocabulary.size), bool)
    legal[_FREE] = True
    legal[_FIRST] = legal[_TEXT] = text
    legal[[_TEXT, _EOS], vocabulary.eos_id] = True
    self.legal = legal

  def references(self, prompts: jax.Array) -> jax.Array:
    """Semantic IDs `[P, H, levels]` of prompts `[P, Lp]`, in the order in which they stand there; -1 where there are fewer than H."""
    first = self._level(prompts) == 0
    starts = jnp.argsort(~first, axis=1, stable=True)[:, : self.max_items]
    places = jnp.minimum(starts[:, :, None] + jnp.arange(self.levels), prompts.shape[1] - 1)
    found = jnp.take_along_axis(prompts, places.reshape(len(prompts), -1), axis=1).reshape(places.shape)
    return jnp.where(jnp.take_along_axis(first, starts, axis=1)[:, :, None], found, -1)

  def apply(self, logits: jax.Array, state: TokenState) -> jax.Array:
    """Logits `[n, V]` with all tokens but the legal ones out of reach."""
    return mask_illegal(logits, self.legal, state)

  def next_state(self, completions: jax.Array, length: jax.Array, references: jax.Array) -> TokenState:
    """State of the token at place `length [B]` of completions `[B, Lc]`, of which only earlier places are read."""
    place = jnp.minimum(length, completions.shape[1] - 1)
    return jax.tree.map(lambda x: x[jnp.arange(len(x)), place], self._states(completions, references))

  def states(self, prompts: jax.Array, completions: jax.Array, completion_mask: jax.Array) -> TokenState:
    """States of all places of completions `[P, G, Lc]` to prompts `[P, Lp]`; outside the mask every token is legal."""
    shape = completions.shape
    references = jnp.repeat(self.references(prompts), shape[1], axis=0)
    state = self._states(completions.reshape(-1, shape[-1]), references)
    phase, following = (x.reshape(*shape, *x.shape[2:]) for x in state)
    return TokenState(jnp.where(completion_mask > 0, phase, _FREE), following)

  def _level(self, tokens: jax.Array) -> jax.Array:
    """The level of codes, -1 of all other tokens."""
    level = (tokens - self.sid_start) // self.codebook_size
    return jnp.where((level >= 0) & (level < self.levels), level, -1)

  def _states(self, tokens: jax.Array, references: jax.Array) -> TokenState:
    """States of all places of rows `[B, T]` whose semantic IDs are among `references [B, H, levels]`."""
    before = jnp.pad(self._level(tokens), ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    level = (before + 1) % self.levels
    place = jnp.arange(tokens.shape[1])
    agrees = jnp.broadcast_to(references[:, None, :, 0] >= 0, (*tokens.shape, self.max_items))
    for back in range(1, self.levels):
      written = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=-1)[:, : tokens.shape[1]]
      # The token `back` places ago is the code of level - back, if the semantic ID is that far.
      expected = jnp.take_along_axis(references, jnp.maximum(level - back, 0)[:, None, :], axis=2)
      agrees &= (expected.swapaxes(1, 2) == written[:, :, None]) | (level < back)[:, :, None]
    following = jnp.take_along_axis(references, level[:, None, :], axis=2).swapaxes(1, 2)
    last = tokens.shape[1] - 1
    fits = (level > 0) | (place + self.levels <= last)
    phase = jnp.where(place == 0, _FIRST, _TEXT)
    phase = jnp.where(level > 0, _CODES, jnp.where(place == last, _EOS, phase))
    return TokenState(phase, jnp.where(agrees & fits[:, :, None], following, self.vocabulary_size))
