import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids import trie as trie_module
from gr2_jax.semantic_ids.trie import CompressedTrie, DenseTrie, SidTrie

SIZE = 4
# Catalogues of 1 to 4 levels: some IDs occur more than once, and most codes are never used.
CATALOGUES = st.integers(1, 4).flatmap(lambda levels: st.lists(st.tuples(*[st.integers(0, SIZE - 1)] * levels), min_size=1, max_size=40))


def _walk(form, codes):
  """The state after some codes from the root, by the interface that beam search uses."""
  state = 0
  for level, code in enumerate(codes):
    pairs = zip(*(x.tolist() for x in form.children(jnp.int32(state), level)), strict=True)
    state = next((child for found, child in pairs if found == code and child >= 0), -1)
  return state


@settings(max_examples=60, deadline=None)
@given(CATALOGUES)
def test_every_path_equals_brute_force(ids):
  trie = SidTrie.build(np.array(ids), SIZE)
  table, levels = np.asarray(trie.dense().next_state), len(ids[0])
  states = {(): 0}
  for level in range(levels):
    for prefix in [prefix for prefix in states if len(prefix) == level]:
      children = {code: int(state) for code, state in enumerate(table[states[prefix]]) if state >= 0}
      assert set(children) == {i[level] for i in ids if i[:level] == prefix}
      states |= {(*prefix, code): state for code, state in children.items()}
  assert sorted(states.values()) == list(range(trie.num_states))
  for prefix, state in states.items():
    assert trie.items_at(state).tolist() == [row for row, i in enumerate(ids) if i == prefix]
    assert (state >= trie.first_leaf) == (len(prefix) == levels)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [1, 30])
def test_both_forms_give_every_state_the_same_children(levels, items):
  ids = np.random.default_rng(levels).integers(1, SIZE, size=(items, levels))  # 30 items collide; code 0 is not used
  trie = SidTrie.build(ids, SIZE)
  states = np.array([-1, 0])
  for level in range(levels):
    codes, found = map(np.asarray, jax.jit(CompressedTrie.children, static_argnums=2)(trie.compressed(), states, level))
    _, expected = trie.dense().children(states, level)
    assert codes.shape == (len(states), trie.widths[level]) and codes.dtype == np.int32
    table = np.full((len(states), SIZE), -1)
    row, _ = which = np.nonzero(found >= 0)
    table[row, codes[which]] = found[which]
    np.testing.assert_array_equal(table, expected)
    assert (np.diff(np.where(found >= 0, codes, SIZE + np.arange(found.shape[1])), axis=1) > 0).all()  # ascending: ties break alike
    states = np.append(-1, found[which])
  assert len(states) - 1 == trie.num_states - trie.first_leaf


def test_a_hand_made_trie_with_a_collision():
  # States: 0 root, 1 (0), 2 (2), 3 (0,1), 4 (2,0), 5 (2,1).
  trie = SidTrie.build(np.array([[0, 1], [2, 0], [0, 1], [2, 1]]), 3)
  absent = [-1, -1, -1]
  assert trie.dense().next_state.tolist() == [[1, -1, 2], [-1, 3, -1], [4, 5, -1], absent, absent, absent]
  assert (trie.last_code[1:].tolist(), trie.first_child.tolist(), trie.widths) == ([0, 2, 1, 0, 1], [1, 3, 4, 6], (2, 2))
  assert (trie.leaf_items.tolist(), trie.leaf_start.tolist(), trie.first_leaf) == ([0, 2, 1, 3], [0, 2, 3, 4], 3)
  # State 1 has one child; the second place, which only state 2 fills, is marked.
  codes, states = trie.compressed().children(jnp.array([1, 2, -1]), 1)
  assert states.tolist() == [[3, -1], [4, 5], [-1, -1]] and codes[0, 0] == 1 and codes[1].tolist() == [0, 1]


def test_illegal_paths_end_at_minus_one_and_hold_nothing():
  trie = SidTrie.build(np.array([[0, 1], [2, 0]]), 3)
  for form in (trie.dense(), trie.compressed()):
    assert [_walk(form, path) for path in ([0, 1], [0, 0], [1, 1], [2, 0])] == [3, -1, -1, 4]
  assert trie.items_at(-1).tolist() == [] and trie.items_at(0).tolist() == []


def test_codes_outside_the_codebook_are_refused():
  with pytest.raises(DataError, match="codebook of 2"):
    SidTrie.build(np.array([[0, 2]]), 2)


def test_the_form_follows_the_size(monkeypatch):
  trie = SidTrie.build(np.array([[0, 1], [2, 0]]), 3)  # 5 states of 3 codes
  monkeypatch.setattr(trie_module, "DENSE_LIMIT", 60)
  assert isinstance(trie.on_device(), DenseTrie) and trie.on_device().next_state.nbytes == 60
  monkeypatch.setattr(trie_module, "DENSE_LIMIT", 59)
  assert isinstance(trie.on_device(), CompressedTrie)


def test_codes_beyond_a_byte_survive():
  ids = np.array([[300, 8_191], [300, 0], [8_191, 256]])
  trie = SidTrie.build(ids, 8_192)
  assert trie.last_code.dtype == np.uint16
  assert [trie.items_at(_walk(trie.compressed(), path)).tolist() for path in ids.tolist()] == [[0], [1], [2]]


def test_a_real_sized_catalogue_builds_quickly():
  codes = np.random.default_rng(0).integers(256, size=(12_000, 4))
  start = time.perf_counter()
  trie = SidTrie.build(codes, 256)
  assert time.perf_counter() - start < 5  # typically 0.01 s; a loop over states would take far longer
  assert len(trie.leaf_items) == 12_000


@pytest.mark.slow
def test_ten_million_items_take_fifty_megabytes():
  codes = np.random.default_rng(0).integers(256, size=(10_000_000, 4), dtype=np.uint8)
  trie = SidTrie.build(codes, 256)
  form = trie.on_device()
  # Expected distinct prefixes: 256, 65,536, 256^3 (1 - exp(-10^7 / 256^3)) = 7.53 million, and nearly all of 10^7: a byte each,
  # and four more for each of the first three levels.
  assert sum(x.nbytes for x in jax.tree.leaves(form)) < 50_000_000
  assert trie.leaf_items.nbytes + trie.leaf_start.nbytes < 81_000_000
  children = jax.jit(CompressedTrie.children, static_argnums=2)
  rows = np.random.default_rng(1).integers(len(codes), size=100)
  states = jnp.zeros(100, jnp.int32)
  for level in range(4):
    found, next_states = children(form, states, level)
    places = np.argmax((np.asarray(found) == codes[rows, level, None]) & (np.asarray(next_states) >= 0), axis=1)
    states = next_states[np.arange(100), places]
  assert all(row in trie.items_at(state) for row, state in zip(rows, states, strict=True))


def test_values_of_leaves_are_spread_over_their_items():
  ids = np.array([(1, 0), (0, 2), (1, 0), (0, 1)])
  trie = SidTrie.build(ids, 3)
  leaf = {tuple(code): state for state, code in zip(range(trie.first_leaf, trie.num_states), [(0, 1), (0, 2), (1, 0)], strict=True)}
  states = np.array([[leaf[1, 0], -1, leaf[0, 1]], [-1, -1, leaf[0, 2]]])
  spread = trie.spread(states, np.array([[0.5, 9.0, 0.25], [9.0, 8.0, 2.0]]))
  assert spread.tolist() == [[0.5, -np.inf, 0.5, 0.25], [-np.inf, 2.0, -np.inf, -np.inf]] and spread.dtype == np.float32
