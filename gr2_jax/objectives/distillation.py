"""On-policy distillation: the reverse KL to a teacher on the student's own samples, in the forms that have its gradient (GR2 Eq 4)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.settings import check_settings, setting

KL_FORMS = ("exact", "top_k", "per_token")
# Estimators whose value is right and whose gradient is not, with d = log π_T - log π of tokens that the student sampled.
_WRONG_FORMS = {
  "k1": "-d, differentiated on the student's samples, has a gradient of 0 in expectation",
  "k3": "exp(d) - d - 1, differentiated on the student's samples, has in expectation the gradient of the forward KL(teacher || student)",
}


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """Which form of KL(student || teacher) is added to the policy term, and with which weight β.

  `kl`, of the student π and the teacher π_T at each place s_t of the student's samples x_t:
    `exact`      the sum over the vocabulary; least variance
    `top_k`      the sum over the union of both models' `top_k` likeliest tokens, and one bucket for all others: a lower bound
    `per_token`  -β (log π_old(x_t) - log π_T(x_t)), detached, is added to the advantage of x_t; needs the teacher's log-probability of
                 x_t alone, and has the gradient of `exact` in expectation, with more variance
  Of a scored answer x_t is who stands at a place of the ranking, and the vocabulary the candidates that are left.
  All hold s_t fixed: how a token changes the places that follow has no part in the gradient (a discount of 0).
  β goes from `beta` to `beta_end` linearly over the steps. A token's log-ratio log π - log π_T counts in the gradient within ±`clip`, so
  that a token that the teacher all but excludes does not decide a step. Raises ValueError for values that cannot hold.
  """

  kl: Literal["exact", "top_k", "per_token"] = setting(
    "exact",
    "how the reverse KL to the teacher is taken: over the vocabulary, over the likeliest tokens of both models, or of the sampled tokens "
    "alone, as a part of their advantages",
  )
  top_k: int = setting(64, "likeliest tokens of each model that the form top_k compares", unit="tokens", low=1)
  beta: float = setting(0.5, "weight of the reverse KL in the first step; it goes linearly to beta_end", low=0)
  beta_end: float = setting(0.05, "weight of the reverse KL in the last step", low=0)
  clip: float = setting(10.0, "up to where a token's log-ratio counts in the gradient", unit="nats", above=0)

  def __post_init__(self) -> None:
    if self.kl not in KL_FORMS:
      why = f": {_WRONG_FORMS[self.kl]}" if self.kl in _WRONG_FORMS else ""
      raise ValueError(f"kl: {self.kl!r} is not offered{why}; use {' or '.join(KL_FORMS)}, whose gradient is the reverse KL's")
    check_settings(self)


def beta_at(config: DistillationConfig, step: jax.Array, steps: int) -> jax.Array:
  """β of the update after `step` others: `beta` in the first, `beta_end` in the last of `steps`."""
  return config.beta + (config.beta_end - config.beta) * jnp.clip(step / max(steps - 1, 1), 0.0, 1.0)


def reverse_kl(log_p: jax.Array, teacher_log_p: jax.Array, clip: float = math.inf) -> jax.Array:
  """KL(p || teacher) in nats, `[...]`, of log-probabilities `[..., V]`; its gradient is Σ_v ∇p_v clip(log p_v - log teacher_v, ±clip).

  Without a clip that is the gradient of the value, since Σ_v p_v ∇log p_v = 0. The teacher gets none.
  """
  log_ratio = jax.lax.stop_gradient(log_p - teacher_log_p)
  p = jnp.exp(log_p)
  clipped = jnp.sum(p * jnp.clip(log_ratio, -clip, clip), axis=-1)
  return clipped + jax.lax.stop_gradient(jnp.sum(p * log_ratio, axis=-1) - clipped)


def merge_tail(log_p: jax.Array, teacher_log_p: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Both distributions `[n, V]` over the union of their k likeliest tokens and one bucket for all others, as `[n, V + 1]`.

  A token of the tail keeps its place, with no mass. The KL of the two is at most that of the whole vocabulary (the log-sum inequality),
  and equal to it where nothing is merged.
  """
  k = min(k, log_p.shape[-1])
  rows = jnp.arange(len(log_p))[:, None]
  head = jnp.zeros(log_p.shape, bool)
  for values in (log_p, teacher_log_p):
    head = head.at[rows, jax.lax.top_k(jax.lax.stop_gradient(values), k)[1]].set(True)

  def merge(values: jax.Array) -> jax.Array:
    tail = jax.nn.logsumexp(jnp.where(head, OUT_OF_REACH, values), axis=-1, keepdims=True)
    return jnp.concatenate([jnp.where(head, values, OUT_OF_REACH), tail], axis=-1)

  return merge(log_p), merge(teacher_log_p)


def make_kl(config: DistillationConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """`kl(log_p [n, V], teacher_log_p [n, V]) -> [n]` of the forms `exact` and `top_k`."""
  if config.kl == "top_k":
    return lambda log_p, teacher_log_p: reverse_kl(*merge_tail(log_p, teacher_log_p, config.top_k), config.clip)
  return lambda log_p, teacher_log_p: reverse_kl(log_p, teacher_log_p, config.clip)


def distilled_advantages(advantages: jax.Array, log_ratio: jax.Array, beta: jax.Array | float, clip: float) -> jax.Array:
  """Per-token advantages `[..., T]`, A - β clip(log π_old - log π_T, ±clip), of `advantages [...]` and the sampled tokens' `log_ratio`.

  Put into a policy term whose samples come from π_old, the second part has in expectation the gradient of β times the reverse KL at
  every place, Σ_t β ∇KL(π(·|s_t) || π_T(·|s_t)) with s_t held fixed. It is not the gradient of the KL of whole sequences, in which a
  token would also answer for the KL at all later places.
  """
  return advantages[..., None] - beta * jax.lax.stop_gradient(jnp.clip(log_ratio, -clip, clip))
