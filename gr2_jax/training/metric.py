"""Metrics as (sum, count): added over microbatches, steps and hosts, and divided once, so that every mean is exact."""

import functools
from collections.abc import Iterable, Mapping

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Metric:
  """A mean that is not yet divided: `sum` over `count` (both scalars; `count` may be a sum of weights)."""

  sum: jax.Array | float
  count: jax.Array | float

  @classmethod
  def of(cls, values: jax.Array, where: jax.Array | None = None) -> "Metric":
    """All of `values`, or those where the mask (or weight) of the same shape is not 0; the others may be NaN."""
    values = jnp.asarray(values, jnp.float32)
    if where is None:
      return cls(values.sum(), jnp.float32(values.size))
    weights = jnp.asarray(where, jnp.float32)
    # A plain product would let a NaN under the mask into the sum.
    return cls(jnp.where(weights != 0, values * weights, 0).sum(), weights.sum())

  def __add__(self, other: "Metric") -> "Metric":
    return Metric(self.sum + other.sum, self.count + other.count)

  def mean(self) -> jax.Array:
    """`sum / count`, and 0 (with a gradient of 0, not NaN) when nothing was counted."""
    empty = jnp.equal(self.count, 0)
    return jnp.where(empty, 0.0, self.sum / jnp.where(empty, 1, self.count))


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
  """Adds metrics by name; a name that some parts lack counts where it is present."""

  def add(merged: dict[str, Metric], part: Mapping[str, Metric]) -> dict[str, Metric]:
    return merged | {name: merged[name] + metric if name in merged else metric for name, metric in part.items()}

  return functools.reduce(add, parts, {})
