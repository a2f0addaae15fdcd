"""The pointwise click model: what it computes, that it learns, that it repeats itself."""

import dataclasses

import jax
import numpy as np
import pytest

from gr2_jax.data.schema import DataError
from gr2_jax.data.slates import pad_histories
from gr2_jax.models.ctr import CtrConfig, _loss, ctr_scores, fit_ctr
from gr2_jax.training.guard import DivergedError

CONFIG = CtrConfig(width=8, epochs=25, learning_rate=0.02, batch=32, max_history=4)


def two_worlds(users=60):
  """Half of the users walk through items 0..4 in some order, the others through 5..9."""
  rng = np.random.default_rng(0)
  return [rng.permutation(5) + 5 * (user % 2) for user in range(users)]


def test_history_rows_keep_the_latest_and_pad():
  assert pad_histories([[1, 2, 3], [4], []], 2).tolist() == [[2, 3], [4, -1], [-1, -1]]


def test_scores_are_pooled_dot_products_and_padding_changes_nothing():
  params = {
    "history": np.asarray([[1.0, 0], [0, 2], [5, 5]]),
    "item": np.asarray([[1.0, 1], [2, 0], [0, 0]]),
    "bias": np.asarray([0, 0, 3.0]),
  }
  # Mean of rows 0 and 1 = (.5, 1): dot products 1.5, 1, 0, plus the bias 3 of the last.
  expected = [[1.5, 1.0, 3.0]]
  np.testing.assert_allclose(ctr_scores(params, np.asarray([[0, 1]])), expected)
  np.testing.assert_allclose(ctr_scores(params, np.asarray([[0, 1, -1, -1]])), expected)
  np.testing.assert_allclose(ctr_scores(params, np.asarray([[-1, -1]])), [[0, 0, 3.0]])


def test_loss_of_zero_logits_is_log_2_per_label():
  params = {"history": np.zeros((3, 2)), "item": np.zeros((3, 2)), "bias": np.zeros(3)}
  loss = _loss(params, np.asarray([[0, -1]]), np.asarray([[1, 2, 0, 0]]))
  assert float(loss) == pytest.approx(4 * np.log(2), rel=1e-5)  # 1 target + 3 negatives


def test_it_learns_which_items_go_together():
  losses = []
  params = fit_ctr(two_worlds(), 10, CONFIG, seed=0, on_progress=lambda epoch, loss: losses.append((epoch, loss)))
  scores = np.asarray(ctr_scores(params, np.asarray([[0, 1, -1], [5, 6, -1]])))
  assert scores[0, :5].min() > scores[0, 5:].max() and scores[1, 5:].min() > scores[1, :5].max()
  assert [epoch for epoch, _ in losses] == list(range(1, CONFIG.epochs + 1)) and losses[-1][1] < losses[0][1]


def test_same_seed_same_parameters():
  first, again, other = (fit_ctr(two_worlds(10), 10, CONFIG, seed) for seed in (1, 1, 2))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
  assert not np.array_equal(first["item"], other["item"])


def test_a_loss_that_is_no_number_names_the_learning_rate():
  with pytest.raises(DivergedError, match=r"--config\.slates\.ctr\.learning_rate"):
    fit_ctr(two_worlds(10), 10, dataclasses.replace(CONFIG, learning_rate=1e30), seed=0)


def test_a_log_without_a_second_purchase_is_refused():
  with pytest.raises(DataError, match="two items"):
    fit_ctr([np.asarray([3])], 10, CONFIG, seed=0)
