"""Keys and values that outlive a forward pass: a prompt's, shared by its group, and a growing suffix's."""

import jax
import jax.numpy as jnp
from flax import struct

from gr2_jax.models.config import ModelConfig


@struct.dataclass
class Prefix:
  """Keys and values of prompts. `k`, `v [layers, P, Lp, KV, Dh]`, `mask [P, Lp]` true at real tokens, and their `positions [P, Lp]`.

  Rows of the suffix come in groups: with `B = P * G` rows, rows `p*G .. p*G+G-1` see all of prompt p.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  positions: jax.Array


def join_prefixes(first: Prefix, then: Prefix) -> Prefix:
  """One prefix of the same prompts, what was read first and then."""
  along = {"k": 2, "v": 2, "mask": 1, "positions": 1}
  return Prefix(**{name: jnp.concatenate([getattr(first, name), getattr(then, name)], axis=axis) for name, axis in along.items()})


def repeat_prefix(prefix: Prefix, times: int) -> Prefix:
  """Each prompt so many times in a row, as rows of their own."""
  k, v = (jnp.repeat(x, times, axis=1) for x in (prefix.k, prefix.v))
  return Prefix(k, v, *(jnp.repeat(x, times, axis=0) for x in (prefix.mask, prefix.positions)))


@struct.dataclass
class Cache:
  """Suffix tokens so far. `k`, `v [layers, B, Lc, KV, Dh]`, `mask [B, Lc]` true where a row sees, `positions [B, Lc]` of the tokens,
  `length` the place written next."""

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  positions: jax.Array
  length: jax.Array


def empty_cache(config: ModelConfig, batch: int, capacity: int) -> Cache:
  """A cache for `batch` rows of at most `capacity` suffix tokens."""
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  zeros = jnp.zeros(shape, config.dtype)
  places = jnp.zeros((batch, capacity), jnp.int32)
  return Cache(k=zeros, v=zeros, mask=places > 0, positions=places, length=jnp.zeros((), jnp.int32))
