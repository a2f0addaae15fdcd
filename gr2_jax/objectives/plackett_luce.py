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


def ranking_log_probs(scores: jax.Array, rankings: jax.Array, mask: jax.Array, last: jax.Array | None = None) -> jax.Array:
  """Log-probability `[..., G]` (nats) of rankings `[..., G, K]` as `draw_rankings` gives them, under scores `[..., K]`; differentiable.

  mask `[..., K]` is true at candidates; what the padding's scores are changes nothing and gets no gradient. With `last [..., K]`, true at
  some of the candidates, a ranking counts through the place of the last of them: the log-probability of all rankings that begin as it does
  up to there, 0 where there is none of them.
  """
  of_places = place_log_probs(scores, rankings, mask)
  if last is not None:
    wanted = jnp.take_along_axis(jnp.broadcast_to(last[..., None, :] > 0, rankings.shape), rankings, axis=-1)
    of_places = jnp.where(jax.lax.cummax(wanted.astype(jnp.int32), axis=rankings.ndim - 1, reverse=True) > 0, of_places, 0.0)
  return jnp.sum(of_places, axis=-1)


def place_log_probs(scores: jax.Array, rankings: jax.Array, mask: jax.Array) -> jax.Array:
  """Log-probability `[..., G, K]` of who stands at each place of rankings, of those that were left; 0 where the padding stands."""
  placed, real = _in_order(scores, rankings, mask)
  return jnp.where(real, placed - _left(placed), 0.0)


def place_distributions(scores: jax.Array, rankings: jax.Array, mask: jax.Array) -> jax.Array:
  """Log-probabilities `[..., G, K, K]` of all candidates, as rankings order them, at each place of rankings; OUT_OF_REACH of those placed.

  The diagonal is `place_log_probs`; where the padding stands nobody is in reach.
  """
  placed, real = _in_order(scores, rankings, mask)
  size = rankings.shape[-1]
  free = real[..., None, :] & (jnp.arange(size) >= jnp.arange(size)[:, None])
  return jnp.where(free, placed[..., None, :] - _left(placed)[..., None], OUT_OF_REACH)


def _in_order(scores: jax.Array, rankings: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Scores `[..., G, K]` as rankings order them, OUT_OF_REACH at the padding, and where they are of candidates."""
  real = jnp.take_along_axis(jnp.broadcast_to(mask[..., None, :] > 0, rankings.shape), rankings, axis=-1)
  placed = jnp.take_along_axis(jnp.broadcast_to(scores.astype(jnp.float32)[..., None, :], rankings.shape), rankings, axis=-1)
  return jnp.where(real, placed, OUT_OF_REACH), real


def _left(placed: jax.Array) -> jax.Array:
  """The log-sum-exp of the candidates from each place on; cumulative from the end, where the padding stands and weighs nothing."""
  return jax.lax.cumlogsumexp(placed, axis=placed.ndim - 1, reverse=True)


def first_place_entropy(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Entropy `[...]` (nats) of who stands first, of scores and mask `[..., K]`: 0 for a policy that is sure."""
  log_p = jax.nn.log_softmax(jnp.where(mask > 0, scores.astype(jnp.float32), OUT_OF_REACH), axis=-1)
  return -jnp.sum(jnp.where(mask > 0, jnp.exp(log_p) * log_p, 0.0), axis=-1)
