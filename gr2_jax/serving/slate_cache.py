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
  """`k`, `v [layers, slots, Ls, KV, Dh]` and the number of real tokens in each slot, `lengths [slots]`."""

  k: jax.Array
  v: jax.Array
  lengths: jax.Array

  @classmethod
  def empty(cls, config: ModelConfig, slots: int, length: int) -> "SlatePool":
    """Slots of at most `length` tokens."""
    zeros = jnp.zeros((config.num_layers, slots, length, config.num_kv_heads, config.head_dim), config.dtype)
    return cls(k=zeros, v=jnp.zeros_like(zeros), lengths=jnp.zeros(slots, jnp.int32))

  def write(self, slots: jax.Array, prefix: Prefix) -> "SlatePool":
    """With the rows of `prefix` at `slots [M]`; slots past the last are left out."""
    length = prefix.mask.shape[1]
    return SlatePool(
      k=self.k.at[:, slots, :length].set(prefix.k, mode="drop"),
      v=self.v.at[:, slots, :length].set(prefix.v, mode="drop"),
      lengths=self.lengths.at[slots].set(prefix.mask.astype(jnp.int32).sum(axis=1), mode="drop"),
    )

  def read(self, slots: jax.Array, length: int) -> Prefix:
    """The slates at `slots [B]`, none of which has more than `length` tokens."""
    mask = jnp.arange(length) < self.lengths[slots][:, None]
    return Prefix(k=self.k[:, slots, :length], v=self.v[:, slots, :length], mask=mask)


class SlateIndex:
  """Which slate lies in which slot: the least recently used makes room."""

  def __init__(self, slots: int):
    self.slots = slots
    self.hits = self.misses = 0
    self._slot_of: OrderedDict[bytes, int] = OrderedDict()

  def find(self, keys: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """(slot of each key, places of the keys whose slots must be written now: the first of each that was not there).

    Raises ValueError for more different keys than slots.
    """
    if len(set(keys)) > self.slots:
      raise ValueError(f"slots: {self.slots} are too few for a batch of {len(set(keys))} slates; raise prefix_slots")
    missing = []
    for key in keys:  # all that are there first, so that none of them makes room for another of the same batch
      if key in self._slot_of:
        self._slot_of.move_to_end(key)
    for place, key in enumerate(keys):
      if key in self._slot_of:
        self.hits += 1
        continue
      self.misses += 1
      free = len(self._slot_of)
      self._slot_of[key] = self._slot_of.popitem(last=False)[1] if free == self.slots else free
      missing.append(place)
    return [self._slot_of[key] for key in keys], missing

  def clear(self) -> None:
    """Forgets all slates, for example when the pool was lost."""
    self._slot_of.clear()
