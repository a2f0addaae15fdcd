"""Parameters of small models, and how far apart two sets of them lie, in NumPy: JAX would compile every one of these operations alone."""

import jax
import numpy as np

from gr2_jax.models.transformer import init_params


def scaled_params(model, factor, seed=0):
  """Fresh parameters times a factor, so that distributions are far from uniform."""
  return jax.tree.map(lambda x: factor * x, jax.device_get(init_params(model, jax.random.key(seed))))


def norm(tree):
  """The root of the sum of all squares."""
  return np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)))


def distance(one, other):
  """The norm of the difference."""
  return norm(jax.tree.map(np.subtract, jax.device_get(one), jax.device_get(other)))
