"""The loss of next items adds its two parts, counts no padding, and teaches which item follows which."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.packed_items import ItemRows, ItemTable, PackedItems, one_a_row
from gr2_jax.models.transformer import init_params
from gr2_jax.rollout.catalogue_scores import make_dense_scores
from gr2_jax.steps.packed_items import make_next_item_loss, make_next_item_ndcg
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import init_state

N, L, C, T = 12, 2, 4, 3
RANDOM = np.random.default_rng(0)
MODEL = PackedItems(preset("test", 1), num_items=N, levels=L, codebook_size=C, text_dim=T, dropout=0.1)
CODES = np.stack([np.arange(N) // C, np.arange(N) % C], axis=1).astype(np.int32)
TABLE = ItemTable(jnp.asarray(CODES), RANDOM.normal(size=(N, T)).astype(np.float32))
SEQUENCES = np.array([[3, 1, 4, 1, 5], [9, 2, -1, -1, -1], [6, -1, -1, -1, -1]], np.int32)
LOSS = make_next_item_loss(MODEL, negatives=6, code_weight=0.25)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: 3 * x, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def loss(params):
  """`loss(sequences, key) -> (loss, metrics)` without dropout."""
  return jax.jit(lambda sequences, key: LOSS(params, one_a_row(sequences), TABLE, key=key, deterministic=True))


def test_the_loss_is_the_dense_one_and_so_much_of_that_of_codes(params, loss):
  key = jax.random.key(1)
  found, metrics = loss(SEQUENCES, key)
  assert set(metrics) == {"loss", "nll_dense", "nll_codes"}
  assert metrics["nll_dense"].count == metrics["nll_codes"].count == 5 and metrics["loss"].count == 1
  assert found == pytest.approx(float(metrics["nll_dense"].mean() + 0.25 * metrics["nll_codes"].mean())) == metrics["loss"].sum
  rows = jax.random.randint(jax.random.split(key)[0], (6,), 0, N)
  dense, codes, real = jax.jit(lambda: MODEL.apply({"params": params}, one_a_row(SEQUENCES), TABLE, rows, method="losses"))()
  for name, nll in (("nll_dense", dense), ("nll_codes", codes)):
    assert metrics[name].sum == pytest.approx(float(nll[real].sum()), rel=1e-5)


def test_ndcg_is_of_the_next_items_places_among_all_items(params):
  found = jax.jit(make_next_item_ndcg(MODEL, cutoff=9))(params, one_a_row(SEQUENCES), TABLE)
  dense = make_dense_scores(MODEL, params, TABLE, max_history=4)
  gains = []
  for sequence in SEQUENCES:
    for end in range(1, np.count_nonzero(sequence >= 0)):
      history = np.where(np.arange(4) < end, sequence[:4], -1)[None]
      rank = int((-np.asarray(dense(history))[0]).argsort().tolist().index(sequence[end]))
      gains.append(1 / np.log2(rank + 2) if rank < 9 else 0.0)
  assert found.count == len(gains) == 5 and 0 < sum(gains) < 5
  assert found.sum == pytest.approx(sum(gains), rel=1e-5)


def test_padding_counts_nowhere(loss):
  """Nor does a user with one item, of whom nothing follows."""
  key = jax.random.key(1)
  found, metrics = loss(SEQUENCES, key)
  alone, of_alone = loss(np.concatenate([SEQUENCES[:2], np.full((1, 5), -1, np.int32)]), key)
  assert found == pytest.approx(float(alone), rel=1e-6) and metrics["nll_dense"].count == of_alone["nll_dense"].count
  nothing, metrics = loss(np.full((3, 5), -1, np.int32), key)
  assert nothing == 0 and metrics["nll_dense"].count == 0


def test_histories_behind_each_other_in_one_row_cost_what_they_cost_in_rows_of_their_own(loss, params):
  """The same next items, in one program of another shape; no item follows one of another history."""
  key = jax.random.key(1)
  items = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 0]], np.int32)
  packed = ItemRows(items, np.array([[0, 1, 2, 3, 4, 0, 1, 0, 0]]), np.array([[1, 1, 1, 1, 1, 2, 2, 3, 0]]))
  found, metrics = jax.jit(lambda: LOSS(params, packed, TABLE, key=key, deterministic=True))()
  apart, of_apart = loss(SEQUENCES, key)
  assert found == pytest.approx(float(apart), rel=1e-5)
  for name in ("nll_dense", "nll_codes"):
    assert metrics[name].count == of_apart[name].count == 5
    assert metrics[name].sum == pytest.approx(float(of_apart[name].sum), rel=1e-5)


def test_the_key_decides_the_negatives(loss):
  metrics = [loss(SEQUENCES, jax.random.key(seed))[1] for seed in (1, 1, 2)]
  dense, codes = ([float(of[name].sum) for of in metrics] for name in ("nll_dense", "nll_codes"))
  assert dense[0] == dense[1] != dense[2]
  assert codes[0] == codes[1] == codes[2], "which are told without negatives"


def test_the_key_decides_what_is_left_out(params):
  codes = jax.jit(lambda key: LOSS(params, one_a_row(SEQUENCES), TABLE, key=key)[1]["nll_codes"].sum)
  assert codes(jax.random.key(1)) == codes(jax.random.key(1)) != codes(jax.random.key(2))


def test_what_follows_what_is_learnt():
  """Item i + 1 follows item i, around the catalogue."""
  items = ((np.arange(N)[:, None] + np.arange(5)) % N).astype(np.int32)
  base = jax.random.key(3)
  optimizer = optax.adam(1e-2)
  loss = make_next_item_loss(MODEL, negatives=8, code_weight=0.1)
  update = jax.jit(make_update(optimizer, loss, whole_batch=lambda step, batch: {"key": jax.random.fold_in(base, step)}))
  state = init_state(init_params(MODEL, jax.random.key(0)), optimizer)
  losses = []
  for _ in range(60):
    state, metrics = update(state, one_a_row(items), TABLE)
    losses.append({name: float(metrics[name].mean()) for name in ("loss", "nll_dense", "nll_codes")})
  assert all(losses[-1][name] < 0.5 * losses[0][name] for name in losses[0])
  histories = np.array([[4, 5, 6, -1], [11, -1, -1, -1], [9, 10, 11, 0]], np.int32)
  scores = make_dense_scores(MODEL, state.params, TABLE, max_history=4)(histories)
  assert scores.argmax(axis=1).tolist() == [7, 0, 1]
  sure = jnp.exp(scores.max(axis=1))
  assert sure.min() > 0.5
