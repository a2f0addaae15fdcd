"""What the automata of constrained decoding share: the state of a place, and logits over the tokens that are legal there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.numerics import OUT_OF_REACH


class TokenState(NamedTuple):
  """What decides the legal tokens at a place: the automaton's `phase [...]`; `following [..., K]` the token that continues each reference
  which may still be named and agrees with the one begun, or the vocabulary's size for the others.
  """

  phase: jax.Array
  following: jax.Array


def mask_illegal(logits: jax.Array, legal: jax.Array | np.ndarray, state: TokenState) -> jax.Array:
  """Logits `[n, V]` with all tokens out of reach but those that are `legal [phases, V]` in the state's phase, and the following ones."""
  legal = jnp.asarray(legal)[state.phase]
  legal = legal.at[jnp.arange(len(legal))[:, None], state.following].set(True, mode="drop")
  return jnp.where(legal, logits, OUT_OF_REACH)
