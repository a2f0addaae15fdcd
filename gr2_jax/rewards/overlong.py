"""Soft overlong shaping: an answer that comes near the token limit pays before it is cut off."""

import jax
import jax.numpy as jnp


def soft_overlong_penalty(lengths: jax.Array, max_length: int, zone: int) -> jax.Array:
  """Penalty in [-1, 0] to add to the reward, by completion length in tokens, EOS included (DAPO, Eq 13).

  0 up to `max_length - zone`, then falling linearly to -1 at `max_length`; -1 for anything longer.
  `zone` 0 punishes only what exceeds `max_length`. Raises ValueError for a zone that the limit does not hold.
  """
  if not 0 <= zone <= max_length:
    raise ValueError(f"zone: {zone} tokens do not fit into max_length {max_length}")
  excess = jnp.asarray(lengths, jnp.float32) - (max_length - zone)
  return -jnp.clip(excess / zone, 0.0, 1.0) if zone else -(excess > 0).astype(jnp.float32)
