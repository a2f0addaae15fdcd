"""The trie of all semantic IDs, which keeps beam search inside the catalogue with a few gathers a step, however large that is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gr2_jax.semantic_ids.table import check_codes

# Above this many bytes a dense table gives way to the compressed one, which on a CPU was as fast at 37 MB already.
DENSE_LIMIT = 1 << 24


@struct.dataclass
class DenseTrie:
  """One row of next states for each state: `next_state [S, C]` int32, -1 where no item continues so; the root is state 0."""

  next_state: jax.Array

  def children(self, states: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
    """Codes and states `[..., W]` that may follow states `[...]` of prefixes of `level` codes, by ascending code.

    A next state of -1 marks an illegal continuation, whose code means nothing; state -1 has no other. Here W = C at every level.
    """
    size = self.next_state.shape[1]
    legal = jnp.where(states[..., None] >= 0, self.next_state[jnp.maximum(states, 0)], -1)
    return jnp.broadcast_to(jnp.arange(size), legal.shape), legal


@struct.dataclass
class CompressedTrie:
  """Compressed sparse rows without a column of next states: `last_code [S]`, `first_child [inner states + 1]` int32.

  States are numbered by length of their prefix and then lexicographically, so that the children of state s are just the states
  `first_child[s]` .. `first_child[s + 1] - 1`. A step reads as many of them as any state of its level has (`widths`), which keeps all
  shapes static (as STATIC does with stored next states, arXiv 2602.22647).
  """

  last_code: jax.Array
  first_child: jax.Array
  widths: tuple[int, ...] = struct.field(pytree_node=False)

  def children(self, states: jax.Array, level: int) -> tuple[jax.Array, jax.Array]:
    """As `DenseTrie.children`, with `W = widths[level]`."""
    parents = jnp.maximum(states, 0)
    child = self.first_child[parents][..., None] + jnp.arange(self.widths[level])
    legal = (states[..., None] >= 0) & (child < self.first_child[parents + 1][..., None])
    return self.last_code.at[child].get(mode="clip").astype(jnp.int32), jnp.where(legal, child, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class SidTrie:
  """The trie on the host, and the items at its leaves; `on_device` is what beam search reads.

  States, `last_code`, `first_child` and `widths` are those of `CompressedTrie`. Leaves are the states `first_leaf` .. `num_states - 1`;
  the catalogue rows of leaf s are `leaf_items[leaf_start[s - first_leaf] : leaf_start[s - first_leaf + 1]]`: several where IDs collide.
  Of 10 million items with four random codes of 256 each, the device holds about 48 MB.
  """

  codebook_size: int
  last_code: np.ndarray
  first_child: np.ndarray
  widths: tuple[int, ...]
  leaf_items: np.ndarray
  leaf_start: np.ndarray

  @classmethod
  def build(cls, codes: np.ndarray, codebook_size: int) -> "SidTrie":
    """From codes `[N, L]`; raises DataError for codes outside 0..codebook_size-1."""
    codes = np.asarray(codes)
    check_codes(codes, codebook_size)
    # The narrowest type does not only save memory: NumPy sorts 8 and 16 bits by radix.
    columns = codes.T.astype(np.min_scalar_type(codebook_size - 1), order="C")
    order = np.lexsort(columns[::-1])
    columns = columns[:, order]
    begins = np.arange(len(codes)) == 0  # the sorted rows at which a new prefix begins
    num_states, last_code, first_child, widths = 1, [columns[0, :1]], [], []
    for column in columns:
      parent_begins = begins
      begins = parent_begins | np.append(True, column[1:] != column[:-1])
      last_code.append(column[begins])
      first_child.append(num_states + np.flatnonzero(parent_begins[begins]))
      num_states += len(last_code[-1])
      widths.append(int(np.diff(first_child[-1], append=num_states).max()))
    return cls(
      codebook_size=codebook_size,
      last_code=np.concatenate(last_code),
      first_child=np.concatenate([*first_child, [num_states]]).astype(np.int32),
      widths=tuple(widths),
      leaf_items=order.astype(np.int32),
      leaf_start=np.append(np.flatnonzero(begins), len(codes)).astype(np.int32),
    )

  @property
  def num_states(self) -> int:
    return len(self.last_code)

  @property
  def first_leaf(self) -> int:
    return len(self.first_child) - 1

  def items_at(self, state: int) -> np.ndarray:
    """Catalogue rows, ascending, of a leaf state; empty for any other state and for -1."""
    leaf = int(state) - self.first_leaf
    if leaf < 0:
      return self.leaf_items[:0]
    return self.leaf_items[self.leaf_start[leaf] : self.leaf_start[leaf + 1]]

  def spread(self, states: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each item's value `[B, N]`, float32, of leaf `states [B, W]` with `values [B, W]`; -inf where none of them holds the item.

    A state of -1 holds none.
    """
    leaves = len(self.leaf_start) - 1
    of_leaf = np.full((len(states), leaves + 1), -np.inf, np.float32)
    np.put_along_axis(of_leaf, np.where(states >= 0, states - self.first_leaf, leaves), values, axis=1)
    of_leaf[:, leaves] = -np.inf
    leaf_of = np.empty(len(self.leaf_items), np.int64)
    leaf_of[self.leaf_items] = np.arange(leaves).repeat(np.diff(self.leaf_start))
    return of_leaf[:, leaf_of]

  def dense(self) -> DenseTrie:
    """The dense table; `4 * num_states * codebook_size` bytes."""
    parents = np.repeat(np.arange(self.first_leaf), np.diff(self.first_child))
    next_state = np.full((self.num_states, self.codebook_size), -1, np.int32)
    next_state[parents, self.last_code[1:]] = np.arange(1, self.num_states)
    return DenseTrie(jnp.asarray(next_state))

  def compressed(self) -> CompressedTrie:
    """The compressed table; a code for each state and four bytes for each that has children."""
    return CompressedTrie(jnp.asarray(self.last_code), jnp.asarray(self.first_child), self.widths)

  def on_device(self) -> DenseTrie | CompressedTrie:
    """Dense up to DENSE_LIMIT bytes, compressed above; beam search finds the same items with either."""
    return self.dense() if 4 * self.num_states * self.codebook_size <= DENSE_LIMIT else self.compressed()
