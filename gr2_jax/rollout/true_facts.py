"""The automaton of true reasons: a word for a fact may stand only behind the name of a candidate of which it is true.

Which candidate is named, which of its facts are told and what else is said stays the policy's choice. As with the slate automaton,
log-probabilities are normalised over the legal tokens, in sampling and in every loss alike.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.scorer import PackedSlates
from gr2_jax.rollout.legal_tokens import TokenState, mask_illegal


class TrueFacts:
  """The automaton of a vocabulary and the facts for which it has words; `names`: of all facts that packed slates hold, in their order."""

  def __init__(self, vocabulary: Vocabulary, names: Sequence[str]) -> None:
    self.columns = np.array([names.index(fact) for fact in vocabulary.facts])
    self.first_words = np.array([vocabulary.fact_word(fact, 0) for fact in vocabulary.facts])
    self.candidate_start, self.sid_start, self.vocabulary_size = vocabulary.candidate_start, vocabulary.sid_start, vocabulary.size
    legal = np.arange(vocabulary.size) < vocabulary.used_size
    legal[list(vocabulary.forbidden_ids)] = False
    legal[vocabulary.special("/think")] = True
    legal[vocabulary.fact_start : vocabulary.sid_start] = False  # but those that follow from the state
    self.legal = legal[None]

  def references(self, slates: PackedSlates, edges: jax.Array) -> jax.Array:
    """The words `[P, K, F']` that are true of each candidate, by the `edges [F, B + 1]` of `FactCodes`; -1 at the padding."""
    values, low = slates.facts[..., self.columns], edges[self.columns, :-1]
    buckets = jnp.maximum(jnp.sum(values[..., None] > low, axis=-1) - 1, 0)
    return jnp.where(slates.real[..., None], self.first_words + buckets, -1)

  def apply(self, logits: jax.Array, state: TokenState) -> jax.Array:
    """Logits `[n, V]` with all tokens but the legal ones out of reach."""
    return mask_illegal(logits, self.legal, state)

  def next_state(self, completions: jax.Array, length: jax.Array, references: jax.Array) -> TokenState:
    """State of the token at place `length [B]` of completions `[B, L]`, of which only earlier places are read."""
    place = jnp.minimum(length, completions.shape[1] - 1)
    return jax.tree.map(lambda x: x[jnp.arange(len(x)), place], self._states(completions, references))

  def states(self, thoughts: jax.Array, references: jax.Array) -> TokenState:
    """States of all places of reasonings `[P, G, L]` about slates with `references [P, K, F']`."""
    shape = thoughts.shape
    found = self._states(thoughts.reshape(-1, shape[-1]), jnp.repeat(references, shape[1], axis=0))
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[2:]), found)

  def _states(self, tokens: jax.Array, references: jax.Array) -> TokenState:
    """States of all places of rows `[B, L]` with `references [B, K, F']`."""
    rows, size = references.shape[:2]
    real = references[..., 0] >= 0
    slots = tokens - self.candidate_start
    named = (tokens >= self.candidate_start) & (tokens < self.sid_start)
    places = jax.lax.cummax(jnp.where(named, jnp.arange(tokens.shape[1]), -1), axis=1)
    before = jnp.pad(places, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]  # where the last name before each place stands
    about = jnp.take_along_axis(slots, jnp.maximum(before, 0), axis=1)
    known = (before >= 0) & (about < size)
    words = references[jnp.arange(rows)[:, None], jnp.where(known, about, 0)]
    words = jnp.where(known[..., None] & (words >= 0), words, self.vocabulary_size)
    names = jnp.where(real, self.candidate_start + jnp.arange(size), self.vocabulary_size)
    names = jnp.broadcast_to(names[:, None], (*tokens.shape, size))
    return TokenState(jnp.zeros(tokens.shape, jnp.int32), jnp.concatenate([words, names], axis=-1))
