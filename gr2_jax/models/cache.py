"""Keys and values that outlive a forward pass: a prompt's, shared by its group, and a growing suffix's."""

import jax
import jax.numpy as jnp
from flax import struct

from gr2_jax.models.config import ModelConfig


@struct.dataclass
class Prefix:
  """Keys and values of prompts. `k`, `v [layers, P, Lp, KV, Dh]`, `mask [P, Lp]` true at real tokens.

  Rows of the suffix come in groups: with `B = P * G` rows, rows `p*G .. p*G+G-1` see all of prompt p.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array


@struct.dataclass
class Cache:
  """Suffix tokens so far. `k`, `v [layers, B, Lc, KV, Dh]`, `mask [B, Lc]` true where a row sees, `length` the place written next."""

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  length: jax.Array


def empty_cache(config: ModelConfig, batch: int, capacity: int) -> Cache:
  """A cache for `batch` rows of at most `capacity` suffix tokens."""
  shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
  zeros = jnp.zeros(shape, config.dtype)
  return Cache(k=zeros, v=zeros, mask=jnp.zeros((batch, capacity), bool), length=jnp.zeros((), jnp.int32))
