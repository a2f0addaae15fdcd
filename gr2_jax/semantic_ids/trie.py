"""The trie of all semantic IDs as a dense table, which keeps beam search inside the catalogue with one gather a step."""

import dataclasses

import numpy as np

from gr2_jax.semantic_ids.table import check_codes, prefix_groups


@dataclasses.dataclass(frozen=True, eq=False)
class SidTrie:
  """States are prefixes, numbered by length and then lexicographically; state 0 is the empty prefix.

  `next_state [S, C]` int32: the state after a code, -1 where no item continues so; all -1 in leaf states.
  Leaves are the states `first_leaf`.. `S - 1`. The catalogue rows of leaf state s are
  `leaf_items[leaf_start[s - first_leaf] : leaf_start[s - first_leaf + 1]]`: more than one where IDs collide.
  Dense is right for catalogues of some 10,000 items (about 50 MB); millions want a compressed trie (STATIC, arXiv 2602.22647).
  """

  next_state: np.ndarray
  leaf_items: np.ndarray
  leaf_start: np.ndarray
  num_levels: int

  @classmethod
  def build(cls, codes: np.ndarray, codebook_size: int) -> "SidTrie":
    """From codes `[N, L]`; raises DataError for codes outside 0..codebook_size-1."""
    codes = np.asarray(codes)
    check_codes(codes, codebook_size)
    groups = prefix_groups(codes)
    sizes = groups.max(axis=0) + 1
    states = groups + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    next_state = np.full((int(sizes.sum()), codebook_size), -1, np.int32)
    for level in range(codes.shape[1]):
      next_state[states[:, level], codes[:, level]] = states[:, level + 1]
    leaf = groups[:, -1]
    return cls(
      next_state=next_state,
      leaf_items=np.argsort(leaf, kind="stable").astype(np.int32),
      leaf_start=np.concatenate([[0], np.cumsum(np.bincount(leaf))]).astype(np.int32),
      num_levels=codes.shape[1],
    )

  @property
  def first_leaf(self) -> int:
    return len(self.next_state) - (len(self.leaf_start) - 1)

  def items_at(self, state: int) -> np.ndarray:
    """Catalogue rows, ascending, of a leaf state; empty for any other state and for -1."""
    leaf = int(state) - self.first_leaf
    if leaf < 0:
      return self.leaf_items[:0]
    return self.leaf_items[self.leaf_start[leaf] : self.leaf_start[leaf + 1]]

  def walk(self, codes: np.ndarray) -> np.ndarray:
    """The state after codes `[..., l]` (any l up to L) from the root, int32 `[...]`; -1 as soon as one is illegal."""
    codes = np.asarray(codes)
    state = np.zeros(codes.shape[:-1], np.int32)
    for level in range(codes.shape[-1]):
      state = np.where(state < 0, -1, self.next_state[state, codes[..., level]])
    return state
