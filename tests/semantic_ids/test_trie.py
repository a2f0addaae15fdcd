import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids.trie import SidTrie

SIZE = 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, SIZE - 1)] * 3), min_size=1, max_size=40))
def test_every_path_equals_brute_force(ids):
  trie = SidTrie.build(np.array(ids, np.int32), SIZE)
  prefixes = {i[:length] for i in ids for length in range(4)}
  assert trie.next_state.shape == (len(prefixes), SIZE)
  states = {}
  for prefix in prefixes:
    state = int(trie.walk(np.array(prefix, np.int32)))
    assert state >= 0
    states[prefix] = state
    legal = {code for code in range(SIZE) if (*prefix, code) in prefixes}
    assert set(np.flatnonzero(trie.next_state[state] >= 0).tolist()) == legal
    rows = [row for row, i in enumerate(ids) if i == prefix]
    assert trie.items_at(state).tolist() == rows
  assert states[()] == 0 and sorted(states.values()) == list(range(len(prefixes)))
  assert all((state >= trie.first_leaf) == (len(prefix) == 3) for prefix, state in states.items())


def test_a_hand_made_trie_with_a_collision():
  # States: 0 root, 1 (0), 2 (2), 3 (0,1), 4 (2,0), 5 (2,1).
  trie = SidTrie.build(np.array([[0, 1], [2, 0], [0, 1], [2, 1]]), 3)
  absent = [-1, -1, -1]
  assert trie.next_state.tolist() == [[1, -1, 2], [-1, 3, -1], [4, 5, -1], absent, absent, absent]
  assert trie.next_state.dtype == np.int32
  assert (trie.leaf_items.tolist(), trie.leaf_start.tolist(), trie.first_leaf) == ([0, 2, 1, 3], [0, 2, 3, 4], 3)


def test_illegal_paths_end_at_minus_one_and_hold_nothing():
  trie = SidTrie.build(np.array([[0, 1], [2, 0]]), 3)
  assert trie.walk(np.array([[0, 1], [0, 0], [1, 1], [2, 0]])).tolist() == [3, -1, -1, 4]
  assert trie.items_at(-1).tolist() == [] and trie.items_at(0).tolist() == []


def test_codes_outside_the_codebook_are_refused():
  with pytest.raises(DataError, match="codebook of 2"):
    SidTrie.build(np.array([[0, 2]]), 2)


def test_a_real_sized_catalogue_builds_quickly():
  codes = np.random.default_rng(0).integers(256, size=(12_000, 4))
  start = time.perf_counter()
  trie = SidTrie.build(codes, 256)
  assert time.perf_counter() - start < 5  # typically 0.05 s; a loop over states would take far longer
  assert len(trie.leaf_items) == 12_000
