"""Clipped policy loss with token means that stay exact over microbatches and devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PolicyLoss(NamedTuple):
  """`loss_sum` / `token_count` is the loss; each diagnostic is a (sum, count) pair of scalars."""

  loss_sum: jax.Array
  token_count: jax.Array
  diagnostics: dict[str, tuple[jax.Array, jax.Array]]


def clipped_policy_loss(
  per_token_logps: jax.Array,
  behaviour_logps: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.28,
) -> PolicyLoss:
  """Token-level clipped surrogate, -Σ min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), and the number of tokens to divide by.

  `per_token_logps, behaviour_logps, mask [..., T]`, `advantages [...]` (one a completion). Tokens where the mask is 0 count
  nowhere and pass no gradient, whatever stands there. Diagnostics, as means over tokens: `clip_low_fraction` and
  `clip_high_fraction` (tokens whose gradient the clip removed), `ratio`, `approx_kl` (r - 1 - log r, an estimate of
  KL(behaviour ‖ policy)) and `logp_gap` (|log r|, on the first step of a batch the gap between sampler and trainer).
  DAPO (arXiv 2503.14476): clip-higher, token-level loss, no KL term; Eq 8 of GR2.
  """
  mask = mask > 0
  # Replaced before exp: an infinite ratio at a masked place would turn the product with 0 into NaN, in the gradient too.
  log_ratio = jnp.where(mask, per_token_logps.astype(jnp.float32) - behaviour_logps, 0.0)
  ratio = jnp.exp(log_ratio)
  advantages = jnp.broadcast_to(advantages[..., None], ratio.shape)
  surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)
  count = jnp.sum(mask, dtype=jnp.float32)

  def masked_sum(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)

  means = {
    "clip_low_fraction": (advantages < 0) & (ratio < 1 - clip_low),
    "clip_high_fraction": (advantages > 0) & (ratio > 1 + clip_high),
    "ratio": ratio,
    "approx_kl": ratio - 1 - log_ratio,
    "logp_gap": jnp.abs(log_ratio),
  }
  diagnostics = {name: (jax.lax.stop_gradient(masked_sum(value)), count) for name, value in means.items()}
  return PolicyLoss(-masked_sum(surrogate), count, diagnostics)
