"""Group-relative advantages, and which groups carry a signal at all."""

import jax
import jax.numpy as jnp

from gr2_jax.kernels.rank_reward.reference import MIN_RAW_STD, STD_FLOOR, normalise_groups


def group_advantages(
  rewards: jax.Array,
  raw_rewards: jax.Array,
  *,
  divide_by: str = "std",
  std_floor: float = STD_FLOOR,
  min_raw_std: float = MIN_RAW_STD,
) -> tuple[jax.Array, jax.Array]:
  """Normalise each group's rewards, and keep the groups whose raw ranking reward varies.

  `rewards [..., G]` are what is optimised (shaped), `raw_rewards [..., G]` the ranking reward before the format credit and any
  shaping. Returns `advantages [..., G]` = (reward - mean) / max(std, std_floor) with the population standard deviation, and
  `keep [...]`, True where the raw reward's standard deviation is at least `min_raw_std`. Advantages of a group that is not kept are 0
  (so are those of a group of one, and of a group with a reward that is not finite).
  The floor keeps finely graded rewards (AUC) from being blown up to unit variance. DAPO (arXiv 2503.14476), Eq 9 of GR2.
  `divide_by`, one of `kernels.rank_reward.reference.DIVISORS`: with "none" they are reward - mean (Dr. GRPO, arXiv 2503.20783); with "mean"
  divided by the group's mean, floored alike, which for rewards of 0 and 1 is in the limit of large groups the gradient of the logarithm of
  the expected reward, cross-entropy's where one label ranks one slate. Rewards must not be negative for that.
  Raises ValueError for another.
  """
  rewards, raw_rewards = jnp.asarray(rewards, jnp.float32), jnp.asarray(raw_rewards, jnp.float32)
  advantages, keep = normalise_groups(
    rewards,
    raw_rewards,
    std_floor=std_floor,
    min_raw_std=min_raw_std,
    group=rewards.shape[-1],
    axis=-1,
    divide_by=divide_by,
  )
  return advantages, keep[..., 0]
