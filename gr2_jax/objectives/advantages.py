"""Group-relative advantages, and which groups carry a signal at all."""

import jax
import jax.numpy as jnp


def _centre(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Deviations from the group mean, and the group's population standard deviation.

  The first member is subtracted before the mean is taken, so equal rewards give deviations of exactly 0, where the plain mean
  would leave rounding noise that a small standard-deviation floor blows up.
  """
  shifted = rewards - rewards[..., :1]
  deviation = shifted - shifted.mean(axis=-1, keepdims=True)
  return deviation, jnp.sqrt(jnp.mean(deviation**2, axis=-1))


def group_advantages(
  rewards: jax.Array, raw_rewards: jax.Array, *, divide_by_std: bool = True, std_floor: float = 1e-4, min_raw_std: float = 1e-6
) -> tuple[jax.Array, jax.Array]:
  """Normalise each group's rewards, and keep the groups whose raw ranking reward varies.

  `rewards [..., G]` are what is optimised (shaped), `raw_rewards [..., G]` the ranking reward before the format credit and any
  shaping. Returns `advantages [..., G]` = (reward - mean) / max(std, std_floor) with the population standard deviation, and
  `keep [...]`, True where the raw reward's standard deviation is at least `min_raw_std`. Advantages of a group that is not kept are 0
  (so are those of a group of one, and of a group with a reward that is not finite).
  The floor keeps finely graded rewards (AUC) from being blown up to unit variance. DAPO (arXiv 2503.14476), Eq 9 of GR2.
  Without `divide_by_std` they are reward - mean (Dr. GRPO, arXiv 2503.20783).
  """
  deviation, std = _centre(jnp.asarray(rewards, jnp.float32))
  _, raw_std = _centre(jnp.asarray(raw_rewards, jnp.float32))
  keep = (raw_std >= min_raw_std) & jnp.isfinite(std)
  advantages = deviation / jnp.maximum(std, std_floor)[..., None] if divide_by_std else deviation
  return jnp.where(keep[..., None], advantages, 0.0), keep
