"""Rankings as Plackett-Luce draws from scores: exact draws, log-probabilities and what they say of the best candidate.

A ranking is drawn place by place, each candidate in proportion to exp(score) among those that are left (Plackett 1975); sorting scores
with Gumbel noise draws a whole one (Yellott 1977), so a group of rankings costs one pass of the model.
"""

import jax
import jax.numpy as jnp

from gr2_jax.numerics import OUT_OF_REACH


def draw_rankings(key: jax.Array, scores: jax.Array, mask: jax.Array, group: int) -> jax.Array:
  """`group` rankings `[..., G, K]` of each slate: candidate indices, best first, those of the padding last.

  scores, mask `[..., K]`; the draws are independent. At temperature T give scores / T.
  """
  *lead, size = scores.shape
  noise = jax.random.gumbel(key, (*lead, group, size))
  noisy = jnp.where(mask[..., None, :] > 0, scores.astype(jnp.float32)[..., None, :] + noise, -jnp.inf)
  return jnp.argsort(-noisy, axis=-1, stable=True)


def ranking_log_probs(scores: jax.Array, rankings: jax.Array, mask: jax.Array) -> jax.Array:
  """Log-probability `[..., G]` (nats) of rankings `[..., G, K]` as `draw_rankings` gives them, under scores `[..., K]`; differentiable.

  mask `[..., K]` is true at candidates; what the padding's scores are changes nothing and gets no gradient.
  """
  real = jnp.take_along_axis(jnp.broadcast_to(mask[..., None, :] > 0, rankings.shape), rankings, axis=-1)
  placed = jnp.take_along_axis(jnp.broadcast_to(scores.astype(jnp.float32)[..., None, :], rankings.shape), rankings, axis=-1)
  placed = jnp.where(real, placed, OUT_OF_REACH)
  # Of the candidates from each place on; cumulative from the end, where the padding stands and weighs nothing.
  left = jax.lax.cumlogsumexp(placed, axis=rankings.ndim - 1, reverse=True)
  return jnp.sum(jnp.where(real, placed - left, 0.0), axis=-1)


def first_place_entropy(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Entropy `[...]` (nats) of who stands first, of scores and mask `[..., K]`: 0 for a policy that is sure."""
  log_p = jax.nn.log_softmax(jnp.where(mask > 0, scores.astype(jnp.float32), OUT_OF_REACH), axis=-1)
  return -jnp.sum(jnp.where(mask > 0, jnp.exp(log_p) * log_p, 0.0), axis=-1)
