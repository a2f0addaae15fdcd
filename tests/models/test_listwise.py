"""Listwise rankers find what is planted: a linear order by both, a rule about the whole slate by self-attention alone."""

import numpy as np
import pytest

from gr2_jax.models.listwise import ListwiseConfig, fit_listwise
from gr2_jax.training.guard import DivergedError

N, K, F = 1200, 5, 3
EDGES = np.tile(np.linspace(0, 1, 9, dtype=np.float32), (F, 1))
CONFIG = ListwiseConfig(width=32, dropout=0.0, learning_rate=3e-3, epochs=25, patience=25)


def draw(rule, seed=0):
  """(facts, labels): the candidate that a rule of the facts `[N, K, F]` names is the target; the last slates are one shorter."""
  facts = np.random.default_rng(seed).random((N, K, F)).astype(np.float32)
  real = np.ones((N, K), bool)
  real[-200:, -1] = False
  labels = (np.arange(K) == np.where(real, rule(facts), -np.inf).argsort(axis=1)[:, -1:]).astype(np.int32)
  return facts, np.where(real, labels, -1)


def largest(facts):
  return facts @ np.array([1.0, -0.5, 0.3])


def second_largest(facts):
  places = (-facts[..., 0]).argsort(axis=1).argsort(axis=1)
  return -np.abs(places - 1.0)


def accuracy(ranker, facts, labels):
  scores = np.where(labels >= 0, ranker.scores(facts, labels >= 0), -np.inf)
  return float((np.take_along_axis(labels, scores.argmax(axis=1)[:, None], axis=1) > 0).mean())


def fit(kind, facts, labels, config=CONFIG, **options):
  held_out = facts[::4], labels[::4]
  options = {"quality": lambda ranker: accuracy(ranker, *held_out), "longest": K, "seed": 0, "key": "evaluation.listwise"} | options
  return fit_listwise(kind, config, facts, labels, np.ones(len(facts), np.float32), EDGES, **options)


@pytest.mark.parametrize("kind", [pytest.param("prm", marks=pytest.mark.slow), "listwise_mlp"])
def test_a_planted_linear_order_is_found(kind):
  ranker = fit(kind, *draw(largest))
  assert accuracy(ranker, *draw(largest, seed=1)) > 0.85


def test_a_rule_about_the_whole_slate_is_found_by_self_attention_alone():
  test = draw(second_largest, seed=1)
  train = draw(second_largest)
  by_attention, by_candidate = accuracy(fit("prm", *train), *test), accuracy(fit("listwise_mlp", *train), *test)
  # One candidate's facts say best "large, but not largest": the second of five is in expectation at 2/3.
  assert by_attention > 0.8 and by_candidate < 0.6


def test_the_mlp_ignores_places_and_prm_reads_them_and_neither_reads_padding():
  facts, labels = draw(largest)
  real = labels >= 0
  order = np.random.default_rng(2).permutation(K)
  config = ListwiseConfig(width=32, epochs=2)
  for kind, same in (("listwise_mlp", True), ("prm", False)):
    ranker = fit(kind, facts, labels, config)
    whole, turned = ranker.scores(facts[:50], real[:50]), ranker.scores(facts[:50][:, order], real[:50][:, order])
    assert np.allclose(whole[:, order], turned, atol=1e-5) == same
    filled = facts.copy()
    filled[-200:, -1] = 0.9
    np.testing.assert_allclose(ranker.scores(facts, real)[real], ranker.scores(filled, real)[real], atol=1e-5)


def test_the_same_seed_gives_the_same_ranker_and_another_seed_another():
  facts, labels = draw(largest)
  config = ListwiseConfig(width=16, epochs=2)
  one, again, other = (fit("prm", facts, labels, config, seed=seed).scores(facts, labels >= 0) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 1e-3


def test_the_best_epoch_of_the_held_out_slates_is_kept_and_patience_ends_the_training():
  qualities, heard = iter([0.3, 0.5, 0.4, 0.5, 0.45, 0.9]), []
  config = ListwiseConfig(width=16, epochs=20, patience=3)
  on_epoch = lambda done, loss: heard.append((done, np.isfinite(loss)))
  ranker = fit("listwise_mlp", *draw(largest), config, quality=lambda _: next(qualities), on_epoch=on_epoch)
  assert ranker.epoch == 2 and heard == [(epoch, True) for epoch in range(1, 6)]


def test_slates_without_a_positive_label_or_of_no_weight_teach_nothing():
  facts, labels = draw(largest)
  labels[::2] = np.minimum(labels[::2], 0)
  assert accuracy(fit("listwise_mlp", facts, labels), *draw(largest, seed=1)) > 0.8


def test_a_training_that_diverges_names_its_learning_rate():
  facts, labels = draw(largest)
  facts[0] = np.inf - np.inf  # not a number
  with pytest.raises(DivergedError, match=r"--config\.evaluation\.listwise\.learning_rate"):
    fit("listwise_mlp", facts, labels)


def test_heads_must_share_the_width():
  with pytest.raises(ValueError, match=r"heads: 3 cannot share a width of 64"):
    ListwiseConfig(heads=3)
