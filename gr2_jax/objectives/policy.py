"""The clipped policy loss of DAPO, GRPO, Dr. GRPO and GSPO, as sums that stay exact over microbatches and devices."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.kernels.rank_reward.reference import DIVISORS
from gr2_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
  """What the published losses differ in; the defaults are DAPO's.

  `aggregation` of the token terms s_t of the sequences i:
    `token_mean`       Σ s_t over all tokens, by their number (DAPO, arXiv 2503.14476)
    `sequence_mean`    the mean over sequences of the mean over their tokens (GRPO, arXiv 2402.03300)
    `constant_length`  the mean over sequences of Σ_t s_t / T, with T the completion limit (Dr. GRPO, arXiv 2503.20783)
  There is no KL term to an initial policy, and no forward pass of one. Raises ValueError for values that cannot hold.
  """

  aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = setting(
    "token_mean",
    "how tokens become a loss: their mean over all (DAPO), the mean of each sequence's mean (GRPO), or the mean of each sequence's sum "
    "by the completion limit (Dr. GRPO)",
  )
  ratio: Literal["token", "sequence"] = setting(
    "token",
    "what is clipped, the ratio of the trained to the sampling policy: of each token, or of the sequence, exp(mean_t log r_t), the same "
    "at all of its tokens (GSPO, arXiv 2507.18071)",
  )
  clip_low: float = setting(0.2, "lower clip: the ratio of the trained to the sampling policy counts from 1 - clip_low on", low=0, below=1)
  clip_high: float = setting(0.28, "upper clip: that ratio counts up to 1 + clip_high", low=0)
  importance_cap: float | None = setting(
    None, "C of the weight min(π_trainer / π_sampler, C) of a token's term, against the gap between both; None: no weight", low=1
  )
  divide_by: str = setting(
    "std", "what advantages are divided by: their group's standard deviation, its mean, or nothing (Dr. GRPO)", choices=DIVISORS
  )
  mask_truncated: bool = setting(False, "whether completions cut off at the limit are left out of the loss (DAPO's overlong filtering)")

  def __post_init__(self) -> None:
    check_settings(self)


DAPO = PolicyLossConfig()
GRPO = PolicyLossConfig(aggregation="sequence_mean", clip_high=0.2)  # arXiv 2402.03300


class PolicyLoss(NamedTuple):
  """`loss_sum` / `denominator` is the loss; each diagnostic is a (sum, count) pair of scalars."""

  loss_sum: jax.Array
  denominator: jax.Array
  diagnostics: dict[str, tuple[jax.Array, jax.Array]]


def loss_denominator(mask: jax.Array, aggregation: str, weights: jax.Array | None = None) -> jax.Array:
  """What the loss of the completions under `mask [..., T]` is divided by; it adds up over microbatches and devices.

  Tokens for `token_mean`, sequences for `sequence_mean`, sequences x T for `constant_length`; a sequence without any token is none.
  With `weights [...]`, one a completion, each counts as many times as it weighs.
  """
  mask = mask > 0
  if aggregation == "token_mean":
    return jnp.sum(mask if weights is None else mask * weights[..., None], dtype=jnp.float32)
  present = mask.any(axis=-1)
  sequences = jnp.sum(present if weights is None else present * weights, dtype=jnp.float32)
  return sequences * mask.shape[-1] if aggregation == "constant_length" else sequences


def truncated_importance_weights(trainer_logps: jax.Array, sampler_logps: jax.Array, mask: jax.Array, cap: float) -> jax.Array:
  """min(π_trainer / π_sampler, cap) of each token `[..., T]`, without a gradient, 1 where the mask is 0.

  Corrects for tokens that the sampler drew from slightly other probabilities than the trainer computes. The cap bounds the variance.
  Truncated importance sampling (Ionides 2008).
  """
  gap = jnp.where(mask > 0, trainer_logps.astype(jnp.float32) - sampler_logps, 0.0)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(gap), cap))


def policy_loss(
  per_token_logps: jax.Array,
  old_logps: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  config: PolicyLossConfig,
  *,
  importance_weights: jax.Array | float = 1.0,
  weights: jax.Array | None = None,
) -> PolicyLoss:
  """Clipped surrogate, -Σ w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) in the config's aggregation, and what to divide it by.

  `per_token_logps, old_logps, mask, importance_weights [..., T]`, `advantages [...]` (one a completion) or `[..., T]` (one a token). Tokens
  where the mask is 0 count nowhere and pass no gradient, whatever stands there. `weights [...]`, one a completion, multiply its terms and
  its part of the denominator: a completion of weight 2 is one given twice. Diagnostics, as means over tokens that no weight touches:
  `clip_low_fraction` and `clip_high_fraction` (tokens whose gradient the clip removed), `ratio`, and `approx_kl` (r - 1 - log r of the
  single token, an estimate of KL(old ‖ policy)). Eq 8 of GR2; for the sources of its variants see `PolicyLossConfig`.
  """
  mask = mask > 0
  lengths = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
  # Replaced before exp: an infinite ratio at a masked place would turn the product with 0 into NaN, in the gradient too.
  token_log_ratio = jnp.where(mask, per_token_logps.astype(jnp.float32) - old_logps, 0.0)
  log_ratio = token_log_ratio
  if config.ratio == "sequence":
    log_ratio = jnp.broadcast_to(jnp.sum(token_log_ratio, axis=-1, keepdims=True) / lengths, token_log_ratio.shape)
  ratio = jnp.exp(log_ratio)
  if jnp.ndim(advantages) < ratio.ndim:
    advantages = jnp.broadcast_to(advantages[..., None], ratio.shape)
  surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * advantages)
  terms = importance_weights * surrogate / (lengths if config.aggregation == "sequence_mean" else 1)

  if weights is not None:
    terms = terms * weights[..., None]

  def masked_sum(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)

  means = {
    "clip_low_fraction": (advantages < 0) & (ratio < 1 - config.clip_low),
    "clip_high_fraction": (advantages > 0) & (ratio > 1 + config.clip_high),
    "ratio": ratio,
    "approx_kl": jnp.exp(token_log_ratio) - 1 - token_log_ratio,
  }
  tokens = loss_denominator(mask, "token_mean")
  diagnostics = {name: (jax.lax.stop_gradient(masked_sum(value)), tokens) for name, value in means.items()}
  return PolicyLoss(-masked_sum(terms), loss_denominator(mask, config.aggregation, weights), diagnostics)
