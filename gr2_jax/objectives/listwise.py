"""The listwise loss of scores that sort a slate."""

import jax
import jax.numpy as jnp

from gr2_jax.numerics import OUT_OF_REACH


def listwise_cross_entropy(scores: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Softmax cross-entropy over each slate's candidates against its labels, normalised to a distribution, in nats.

  scores, labels, mask `[..., K]`; what stands where the mask is 0 counts nowhere and passes no gradient. Returns the losses `[...]` and
  whether a slate has a positive label; the loss of one that has none is 0. Bruch et al. 2019, ListNet's top-one case for one positive.
  """
  mask = mask > 0
  # Replaced before the softmax: an infinite score under the mask would turn its product with 0 into NaN.
  log_p = jax.nn.log_softmax(jnp.where(mask, scores.astype(jnp.float32), OUT_OF_REACH), axis=-1)
  gains = jnp.where(mask, jnp.maximum(labels, 0), 0).astype(jnp.float32)
  total = gains.sum(axis=-1)
  losses = -jnp.sum(jnp.where(gains > 0, gains * log_p, 0.0), axis=-1) / jnp.where(total > 0, total, 1)
  return losses, total > 0
