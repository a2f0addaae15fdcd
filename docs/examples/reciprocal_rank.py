"""A reward on the device: 1 / rank of the best-labelled candidate.

Train with it by `--config.rl.reward.fn=docs.examples.reciprocal_rank:reward`. It is traced by JAX and compiled into the step, so it is pure
and works on whole arrays: P slates, G answers to each, K candidates.
"""

import jax.numpy as jnp

from gr2_jax.rewards.own import Answers, Rewards, Slates

INVALID = -1.0  # below anything that a ranking can earn, so that giving no answer never pays


def reward(answers: Answers, slates: Slates) -> Rewards:
  """1 / rank of the candidate of the best label (of several the one put highest); 0 where no label is positive."""
  labels = jnp.where(slates.mask, slates.labels, 0)
  best = (labels > 0) & (labels == labels.max(axis=-1, keepdims=True))

  # Place by place: whether the candidate put there, [P, G, K], is a best one. -1 stands for no candidate.
  listed = answers.rankings >= 0
  hit = listed & jnp.take_along_axis(best[:, None, :], jnp.where(listed, answers.rankings, 0), axis=-1)
  reciprocal = jnp.where(hit, 1.0 / (1 + jnp.arange(hit.shape[-1])), 0.0).max(axis=-1)

  earned = jnp.where(answers.valid, reciprocal, INVALID)
  return Rewards(total=earned, raw=earned)
