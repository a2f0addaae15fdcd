"""A position's state depends on the items up to it and on nothing else, and the losses are those of their definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gr2_jax.models.config import preset
from gr2_jax.models.packed_items import ItemTable, PackedItems, one_a_row

N, L, C, T, H = 9, 2, 3, 5, 4
RANDOM = np.random.default_rng(0)
MODEL = PackedItems(preset("test", 1), num_items=N, levels=L, codebook_size=C, text_dim=T, dropout=0.5)
TABLE = ItemTable(jnp.asarray(RANDOM.integers(C, size=(N, L)), jnp.int32), RANDOM.normal(size=(N, T)).astype(np.float32))
HISTORIES = np.array([[3, 1, 4, 1], [5, 8, -1, -1]], np.int32)


@pytest.fixture(scope="module")
def params():
  found = jax.jit(lambda: MODEL.init(jax.random.key(0), *MODEL.example()))()["params"]
  return jax.tree.map(lambda x: 3 * x, nn.unbox(found))


@pytest.fixture(scope="module")
def read(params):
  """`read(histories) -> (states, item vectors)`."""
  return jax.jit(lambda histories: MODEL.apply({"params": params}, histories, TABLE))


@pytest.fixture(scope="module")
def drop(params):
  """`drop(key) -> states` as in training."""

  def states(key):
    vectors = MODEL.apply({"params": params}, TABLE, method="item_vectors")
    rows, rngs = one_a_row(HISTORIES), {"dropout": key}
    return MODEL.apply({"params": params}, rows, vectors, deterministic=False, rngs=rngs, method="states")

  return jax.jit(states)


@pytest.fixture(scope="module")
def code_log_probs(params):
  return jax.jit(lambda states, codes: MODEL.apply({"params": params}, states, codes, method="code_log_probs"))


@pytest.fixture(scope="module")
def losses(params):
  """`losses(sequences, negatives) -> (dense, codes, real)`."""
  return jax.jit(lambda *batch: MODEL.apply({"params": params}, one_a_row(batch[0]), TABLE, batch[1], method="losses"))


def test_an_item_s_vector_is_the_sum_of_its_parts(params, read):
  vectors = read(HISTORIES)[1]
  parts = jax.tree.map(np.asarray, {name: params[name] for name in ("items", "codes", "text")})
  for item in range(N):
    codes = sum(parts["codes"][level, TABLE.codes[item, level]] for level in range(L))
    by_hand = parts["items"][item] + codes + np.sqrt(T) * TABLE.text[item] @ parts["text"]
    np.testing.assert_allclose(vectors[item], by_hand, atol=1e-5)


def test_a_later_item_changes_no_earlier_state(read):
  base = np.asarray(read(HISTORIES)[0])
  for place in range(H):
    changed = HISTORIES.copy()
    changed[0, place] = 7
    states = np.asarray(read(changed)[0])
    np.testing.assert_allclose(states[0, :place], base[0, :place], atol=1e-5)
    assert np.abs(states[0, place:] - base[0, place:]).max(axis=-1).min() > 1e-3, "what comes from there on reads it"
    np.testing.assert_allclose(states[1], base[1], atol=1e-5)


def test_the_order_of_a_history_counts(read):
  swapped = HISTORIES.copy()
  swapped[0, :2] = HISTORIES[0, 1::-1]
  assert np.abs(read(swapped)[0][0, 3] - read(HISTORIES)[0][0, 3]).max() > 1e-3


def test_padding_changes_nothing(read):
  short = read(HISTORIES[1:, :2])[0]
  np.testing.assert_allclose(read(HISTORIES)[0][1, :2], short[0], atol=1e-5)


def test_codes_of_a_level_sum_to_one_and_so_does_the_whole_tree(code_log_probs):
  states = RANDOM.normal(size=(3, 32)).astype(np.float32)
  leaves = np.array(list(itertools.product(range(C), repeat=L)), np.int32)
  of = np.asarray(code_log_probs(np.repeat(states[:, None], len(leaves), axis=1), np.tile(leaves, (3, 1, 1))))
  assert of.shape == (3, C**L, L) and of.std(axis=1).min() > 1e-3
  np.testing.assert_allclose(np.exp(of.sum(axis=-1)).sum(axis=1), 1, rtol=1e-5)
  first = np.exp(of[:, ::C, 0])  # one leaf of each first code
  np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)
  np.testing.assert_array_equal(of[:, 0, 0], of[:, C - 1, 0])  # a first code does not know the second


def test_a_code_is_written_after_the_ones_before_it_by_hand(params, code_log_probs):
  state = RANDOM.normal(size=32).astype(np.float32)
  writer, codes = np.asarray(params["writer"]), np.asarray(params["codes"])

  def log_probs(level, state):
    written = state @ writer[level]
    logits = written / (1 + np.exp(-written)) @ codes[level].T
    return logits - np.log(np.exp(logits).sum())

  by_hand = [log_probs(0, state)[2], log_probs(1, state + codes[0, 2])[1]]
  np.testing.assert_allclose(code_log_probs(state, np.array([2, 1], np.int32)), by_hand, rtol=1e-4, atol=1e-5)


def test_losses_by_hand_and_a_negative_that_is_the_next_item_counts_once(read, losses, code_log_probs):
  sequences = np.array([[3, 1, 4, 1, 5], [5, 8, -1, -1, -1]], np.int32)
  negatives = np.array([1, 7, 1, 4, 7], np.int32)  # with repeats, and two of the next items among them
  dense, codes, real = losses(sequences, negatives)
  assert real.tolist() == [[True] * 4, [True, False, False, False]]
  states, vectors = map(np.asarray, read(sequences[:, :-1]))
  for row, place in zip(*np.nonzero(real), strict=True):
    target = sequences[row, place + 1]
    scores = [states[row, place] @ vectors[item] for item in (target, *negatives[negatives != target])]
    assert dense[row, place] == pytest.approx(np.log(np.exp(scores).sum()) - scores[0], rel=1e-4, abs=1e-4)
    written = code_log_probs(states[row, place], TABLE.codes[target])
    assert codes[row, place] == pytest.approx(-float(written.sum()), rel=1e-4)


def test_a_next_item_without_any_rival_costs_nothing(losses):
  dense, _, _ = losses(np.array([[3, 1, 1, 1, 1], [1, 4, -1, -1, -1]], np.int32), np.array([1] * 5, np.int32))
  assert (dense[0] == 0).all() and dense[1, 0] > 0


def test_dropout_is_for_training_alone(read, drop):
  assert np.abs(drop(jax.random.key(0)) - drop(jax.random.key(1))).max() > 0
  np.testing.assert_array_equal(drop(jax.random.key(0)), drop(jax.random.key(0)))
  share = (np.asarray(drop(jax.random.key(2)))[0] == 0).mean()
  assert 0.3 < share < 0.7, "of the states"
  assert (np.asarray(read(HISTORIES)[0])[0] != 0).all()
