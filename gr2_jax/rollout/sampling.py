"""Draw tokens, and say with which log-probability each was drawn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

_BLOCK = 128


@struct.dataclass
class Sampling:
  """Sampling knobs as float32 scalars, so that changing one compiles nothing anew.

  `temperature` 0 is greedy. `top_p` keeps the smallest set of most probable tokens whose probabilities sum to at least `top_p`
  (tokens tied with the least probable of them are all kept); 1 keeps everything.
  """

  temperature: jax.Array
  top_p: jax.Array

  @classmethod
  def create(cls, temperature: float = 1.0, top_p: float = 1.0) -> "Sampling":
    """Check the ranges and make the arrays."""
    if not 0 <= temperature < float("inf"):
      raise ValueError(f"temperature must be finite and at least 0 (0 is greedy), got {temperature}")
    if not 0 < top_p <= 1:
      raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    return cls(jnp.float32(temperature), jnp.float32(top_p))


class Sample(NamedTuple):
  """Tokens drawn, with their log-probability and the entropy (nats) of the distribution that they were drawn from."""

  tokens: jax.Array
  log_probs: jax.Array
  entropy: jax.Array


def draw_uniforms(key: jax.Array, rows: jax.Array, length: int) -> jax.Array:
  """One number of [0, 1) `[B, length]` for every row id of `rows [B]` and place in its completion.

  Its key is fold_in(fold_in(key, row), place), so it depends neither on the other rows nor on `length`. Drawn all at once before
  decoding begins, it costs the loop nothing.
  """

  def draw(row: jax.Array, place: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), place))

  return jax.vmap(jax.vmap(draw, in_axes=(None, 0)), in_axes=(0, None))(rows, jnp.arange(length))


def _nucleus_threshold(probs: jax.Array, top_p: jax.Array) -> jax.Array:
  """The largest threshold `[B, 1]` at which the probabilities not below it still sum to `top_p`.

  Bisects the bit patterns of non-negative floats, which are ordered like the floats: 31 masked sums find the threshold exactly,
  need no sort, and work on a vocabulary that is split over devices.
  """

  def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = bounds  # the mass at `low` reaches top_p, that at `high` does not
    middle = low + (high - low) // 2
    threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
    enough = jnp.sum(jnp.where(probs >= threshold, probs, 0.0), axis=-1, keepdims=True) >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  low = jnp.zeros((*probs.shape[:-1], 1), jnp.int32)
  above_one = jnp.full_like(low, jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32))
  low, _ = jax.lax.fori_loop(0, 31, halve, (low, above_one))
  return jax.lax.bitcast_convert_type(low, jnp.float32)


def _keep_nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
  probs = jax.nn.softmax(logits, axis=-1)
  return jnp.where(probs >= _nucleus_threshold(probs, top_p), logits, -jnp.inf)


def _first_above(cumulative: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
  """The first index `[B]` of positive weight whose cumulative sum is above the target, else the last of positive weight.

  Parallel sums are rounded along different trees, so they need not rise where a weight is 0, nor end at the total: without the
  look at the weights such a place could be drawn. Minimum and maximum of indices, since argmax compiles very slowly in some fusions.
  """
  index = jnp.arange(weights.shape[-1])
  above = jnp.where((weights > 0) & (cumulative > target[:, None]), index, weights.shape[-1]).min(axis=-1)
  return jnp.minimum(above, jnp.where(weights > 0, index, 0).max(axis=-1))


def _draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Index drawn in proportion to `weights [B, V]` with one number of [0, 1) a row; a weight of 0 is never drawn.

  Inverts the cumulative sum in two levels (blocks of 128, then inside the block): one random number and one pass a row, where the
  Gumbel trick needs V random numbers.
  """
  batch, size = weights.shape
  blocks = jnp.pad(weights, ((0, 0), (0, -size % _BLOCK))).reshape(batch, -1, _BLOCK)
  block_weights = blocks.sum(axis=-1)
  block_ends = jnp.cumsum(block_weights, axis=-1)
  target = uniform * block_ends[:, -1]
  block = _first_above(block_ends, block_weights, target)
  start = jnp.take_along_axis(block_ends - block_weights, block[:, None], axis=-1)[:, 0]
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  place = _first_above(jnp.cumsum(inside, axis=-1), inside, target - start)
  return (block * _BLOCK + place).astype(jnp.int32)


def sample_tokens(logits: jax.Array, uniform: jax.Array, sampling: Sampling) -> Sample:
  """Draw one token a row from softmax(logits / temperature), cut to the top-p set and normalised over it.

  `logits [B, V]`, taken as float32; `uniform [B]` in [0, 1) (`draw_uniforms`), which with the row's logits decides the draw, so it does
  not change with the batch around it. At temperature 0 the distribution sampled is a point mass on the largest logit (the first
  of equals): log-probability 0 and entropy 0. Where logits are not finite the log-probability is NaN, whatever the temperature.
  """
  logits = logits.astype(jnp.float32)
  greedy = sampling.temperature <= 0
  scaled = logits / jnp.where(greedy, 1.0, sampling.temperature)
  scaled = jax.lax.cond(sampling.top_p < 1, _keep_nucleus, lambda logits, _: logits, scaled, sampling.top_p)
  largest = scaled.max(axis=-1, keepdims=True)  # NaN where one is
  centred = scaled - largest
  weights = jnp.exp(centred)
  total = weights.sum(axis=-1)
  log_total = jnp.log(total)
  drawn = _draw(weights, uniform)
  log_probs = jnp.take_along_axis(centred, drawn[:, None], axis=-1)[:, 0] - log_total
  entropy = log_total - jnp.sum(jnp.where(weights > 0, weights * centred, 0.0), axis=-1) / total
  tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn)
  certain = jnp.where(jnp.isfinite(largest[:, 0]), 0.0, jnp.nan)
  return Sample(tokens, jnp.where(greedy, certain, log_probs), jnp.where(greedy, 0.0, entropy))
