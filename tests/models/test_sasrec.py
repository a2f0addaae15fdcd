"""SASRec: that it learns an order of items, that padding and later items change nothing, that it repeats itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.data.schema import DataError
from gr2_jax.models.packed_items import one_a_row
from gr2_jax.models.sasrec import SasrecConfig, _pack, fit_sasrec, make_network, sasrec_scores
from gr2_jax.training.guard import DivergedError

N, TEXT = 12, 5
CIRCLE = 10  # items of histories; the last two are in none, and read like items 3 and 4
CONFIG = SasrecConfig(width=16, layers=1, dropout=0.1, negatives=8, epochs=30, learning_rate=0.01, batch=64, max_history=6)
VECTORS = np.concatenate([np.eye(CIRCLE, TEXT, dtype=np.float32), np.eye(TEXT, dtype=np.float32)[3:]])


def walks(users=80):
  """Users who walk round a circle of ten items in steps of three, of whom most begin at item 0, so that some items are rare."""
  rng = np.random.default_rng(0)
  return [(rng.choice(CIRCLE, p=[0.82, *[0.02] * 9]) + 3 * np.arange(rng.integers(2, 6))) % CIRCLE for _ in range(users)]


@pytest.fixture(scope="module")
def losses():
  return []


@pytest.fixture(scope="module")
def params(losses):
  return fit_sasrec(walks(), VECTORS, CONFIG, seed=0, on_progress=lambda *line: losses.append(line))


def scores(params, histories):
  return np.asarray(sasrec_scores(params, jnp.asarray(histories, jnp.int32), CONFIG))


def test_it_learns_what_follows_what_and_not_what_is_popular(params, losses):
  lasts = np.arange(CIRCLE)
  following = (lasts + 3) % CIRCLE
  counts = np.bincount(np.concatenate(walks()))
  assert counts.max() > 10 * counts.min()
  for histories in (lasts[:, None], np.stack([lasts - 3, lasts], axis=1) % CIRCLE):
    assert (scores(params, histories)[:, :CIRCLE].argmax(axis=1) == following).mean() >= 0.9
  assert [epoch for epoch, _ in losses] == list(range(1, CONFIG.epochs + 1)) and losses[-1][1] < 0.5 * losses[0][1]


def test_padding_changes_nothing(params):
  short = scores(params, [[2, 5, 8]])
  np.testing.assert_allclose(scores(params, [[2, 5, 8, -1, -1]]), short, atol=1e-5)
  assert np.abs(scores(params, [[5, 2, 8]]) - short).max() > 1e-3, "but order does"


def test_later_items_change_no_earlier_score(params):
  whole = np.array([[2, 5, 8, 1, 4]], np.int32)
  states = make_network(CONFIG, N, TEXT).apply({"params": params.network}, one_a_row(whole), params.items, method="states")
  for length in range(1, 6):
    np.testing.assert_allclose(states[:, length - 1] @ params.items.T, scores(params, whole[:, :length]), atol=1e-4)


def test_an_item_that_nobody_has_bought_is_known_by_its_text(params):
  after_0 = scores(params, [[0]])[0]
  assert after_0[CIRCLE] > after_0[CIRCLE + 1], "what reads like item 3, which follows item 0, is above what reads like item 4"


def test_every_next_item_is_learnt_once():
  histories = [np.arange(1, n) for n in (2, 3, 5, 9, 14)]
  rows = _pack(histories, 4)
  assert rows.items.shape[1] == 4
  same = (rows.segment_ids[:, 1:] == rows.segment_ids[:, :-1]) & (rows.segment_ids[:, 1:] > 0)
  pairs = np.stack([rows.items[:, :-1][same], rows.items[:, 1:][same]], axis=1).tolist()
  assert sorted(pairs) == sorted([a, b] for of in histories for a, b in zip(of[:-1], of[1:], strict=True))


def test_same_seed_same_parameters(params):
  again, other = (fit_sasrec(walks(), VECTORS, CONFIG, seed) for seed in (0, 1))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, again))
  assert not np.array_equal(params.items, other.items)


def test_a_loss_that_is_no_number_names_the_learning_rate():
  with pytest.raises(DivergedError, match=r"--config\.slates\.sasrec\.learning_rate"):
    fit_sasrec(walks(10), VECTORS, dataclasses.replace(CONFIG, learning_rate=1e30), seed=0)


def test_a_log_without_a_second_item_is_refused():
  with pytest.raises(DataError, match="two items"):
    fit_sasrec([np.asarray([3])], VECTORS, CONFIG, seed=0)
