"""Losses and advantages, as sums that stay exact over microbatches and devices.

>>> import jax.numpy as jnp
>>> from gr2_jax.objectives import DAPO, group_advantages, policy_loss
>>> advantages, keep = group_advantages(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]))
>>> advantages.tolist(), keep.tolist()
([[1.0, -1.0]], [True])
>>> old = jnp.log(jnp.full((1, 2, 3), 0.5))
>>> loss = policy_loss(old.at[0, 0].add(0.1), old, advantages, jnp.ones((1, 2, 3)), DAPO)  # the better answer became likelier
>>> round(float(loss.loss_sum / loss.denominator), 4), float(loss.denominator)
(-0.0526, 6.0)
"""

from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.distillation import DistillationConfig, reverse_kl
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.objectives.plackett_luce import draw_rankings, ranking_log_probs
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, policy_loss
from gr2_jax.objectives.token_loss import parts_cross_entropy, token_log_probs

__all__ = [
  "DAPO",
  "DistillationConfig",
  "PolicyLossConfig",
  "draw_rankings",
  "group_advantages",
  "listwise_cross_entropy",
  "parts_cross_entropy",
  "policy_loss",
  "ranking_log_probs",
  "reverse_kl",
  "token_log_probs",
]
