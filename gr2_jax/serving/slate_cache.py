"""Keys and values of slates that were asked for lately, on the device: a slate is computed once for all users to whom it is shown."""

from collections import OrderedDict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from gr2_jax.models.cache import Prefix
from gr2_jax.models.config import ModelConfig


@struct.dataclass
class SlatePool:
  """`k`, `v [layers, entries, Ls, KV, Dh]` and the number of real tokens of each entry, `lengths [entries]`."""

  k: jax.Array
  v: jax.Array
  lengths: jax.Array

  @classmethod
  def empty(cls, config: ModelConfig, entries: int, length: int) -> "SlatePool":
    """Room for so many slates of at most `length` tokens."""
    zeros = jnp.zeros((config.num_layers, entries, length, config.num_kv_heads, config.head_dim), config.dtype)
    return cls(k=zeros, v=jnp.zeros_like(zeros), lengths=jnp.zeros(entries, jnp.int32))

  def write(self, entries: jax.Array, prefix: Prefix) -> "SlatePool":
    """With the rows of `prefix` as the entries `entries [M]`; those past the last are left out."""
    length = prefix.mask.shape[1]
    return SlatePool(
      k=self.k.at[:, entries, :length].set(prefix.k, mode="drop"),
      v=self.v.at[:, entries, :length].set(prefix.v, mode="drop"),
      lengths=self.lengths.at[entries].set(prefix.mask.astype(jnp.int32).sum(axis=1), mode="drop"),
    )

  def read(self, entries: jax.Array, length: int) -> Prefix:
    """The slates of `entries [B]`, none of which has more than `length` tokens."""
    positions = jnp.broadcast_to(jnp.arange(length), (len(entries), length))
    mask = positions < self.lengths[entries][:, None]
    return Prefix(k=self.k[:, entries, :length], v=self.v[:, entries, :length], mask=mask, positions=positions)


class SlateIndex:
  """Which entry of a pool of `size` holds which slate: the least recently used makes room."""

  def __init__(self, size: int):
    self.size = size
    self.hits = self.misses = 0
    self._entry_of: OrderedDict[bytes, int] = OrderedDict()

  def find(self, keys: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """(entry of each key, places in `keys` of those whose entries must be written now: the first of each that was not there).

    Raises ValueError for more different keys than entries.
    """
    if len(set(keys)) > self.size:
      raise ValueError(f"size: {self.size} entries are too few for a batch of {len(set(keys))} slates")
    missing = []
    for key in keys:  # all that are there first, so that none of them makes room for another of the same batch
      if key in self._entry_of:
        self._entry_of.move_to_end(key)
    for place, key in enumerate(keys):
      if key in self._entry_of:
        self.hits += 1
        continue
      self.misses += 1
      free = len(self._entry_of)
      self._entry_of[key] = self._entry_of.popitem(last=False)[1] if free == self.size else free
      missing.append(place)
    return [self._entry_of[key] for key in keys], missing

  def clear(self) -> None:
    """Forgets all slates, for example when the pool was lost."""
    self._entry_of.clear()
