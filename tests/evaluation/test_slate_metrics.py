"""What rankings make of whole slates, by hand, and scores that are re-ranked for the same reward."""

import itertools

import numpy as np
import pytest

from gr2_jax.data.attributes import SlateAttributes
from gr2_jax.data.market import choice_probabilities
from gr2_jax.evaluation.reranked import rerank_as_chosen, rerank_greedily
from gr2_jax.evaluation.slate_metrics import SLATE_METRICS, SlateView, Truth
from gr2_jax.rewards.slate import SlateRewardConfig

LABELS = np.array([[0, 1, 0, 0], [1, 0, -1, -1]])
ATTRIBUTES = SlateAttributes(
  brands=np.int32([[1, 1, 1, 2], [3, 3, -1, -1]]),
  prices=np.float32([[0.3, 0.1, -0.2, -0.2], [0.5, -0.5, 0, 0]]),
  small=np.array([[False, False, False, True], [False, True, False, False]]),
)
CHOICE = np.array([[0.4, 0.3, 0.2, 0.1], [0.7, 0.3, 0, 0]])
CONFIG = SlateRewardConfig(top=3, diversity=0.5, small_brands=0.2)
RANKINGS = np.array([[1, 0, 3, 2], [1, 0, 2, 3]])


def view(config=CONFIG, truth=None):
  return SlateView(LABELS, ATTRIBUTES, truth, config)


def test_metrics_by_hand():
  found = view(truth=Truth(CHOICE, 2 * CHOICE)).measure(RANKINGS)
  assert set(found) == set(SLATE_METRICS) and all(values.dtype == np.float64 for values in found.values())
  discount = 1 / np.log2([2, 3, 4])
  true = [discount @ [0.3, 0.4, 0.1], discount[:2] @ [0.3, 0.7]]
  np.testing.assert_allclose(found["brands@3"], [2 / 3, 1 / 2])
  np.testing.assert_allclose(found["price@3"], [0.2 / 3, 0], atol=1e-7)
  np.testing.assert_allclose(found["small_brands@1"], [0, 1])
  np.testing.assert_allclose(found["true_recall@1"], [0.3, 0.3], rtol=1e-6)
  np.testing.assert_allclose(found["true_ndcg@3"], true, rtol=1e-6)
  np.testing.assert_allclose(found["slate_reward"], [2 * true[0] + 0.5 * 2 / 3, 2 * true[1] + 0.5 / 2 + 0.2], rtol=1e-6)


def test_without_a_truth_labels_are_what_is_earned_and_without_places_nothing_is():
  found = view().measure(RANKINGS)
  assert "true_ndcg@3" not in found
  np.testing.assert_allclose(found["slate_reward"], [1 + 0.5 * 2 / 3, 1 / np.log2(3) + 0.5 / 2 + 0.2], rtol=1e-6)
  assert "slate_reward" not in view(SlateRewardConfig()).measure(RANKINGS)


def test_an_invalid_answer_has_nothing():
  found = view(truth=Truth(CHOICE, CHOICE)).measure(np.array([[-1] * 4, [0, 1, 2, 3]]))
  assert all(values[0] == 0 for values in found.values()) and found["true_recall@1"][1] == pytest.approx(0.7)


def test_the_choice_of_a_logit_market():
  np.testing.assert_allclose(choice_probabilities(np.log(CHOICE[:1]).astype(np.float32)), CHOICE[:1], rtol=1e-5)


def test_a_greedy_order_takes_what_adds_most_and_is_a_permutation():
  scores = np.log(np.maximum(CHOICE, 1e-9))
  plain = rerank_greedily(scores, LABELS, ATTRIBUTES, SlateRewardConfig(top=3))
  assert plain.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
  # Of the first slate .4; then another brand adds .1 / log2(3) + .5 / 3 = .23 against .19; .2 / 2 is left against .3 / 2.
  assert rerank_greedily(scores, LABELS, ATTRIBUTES, SlateRewardConfig(top=3, diversity=0.5)).tolist() == [[0, 3, 1, 2], [0, 1, 2, 3]]
  small = rerank_greedily(scores, LABELS, ATTRIBUTES, SlateRewardConfig(top=3, small_brands=0.35))
  assert small.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3]], ".1 + .35 against .4, but .3 + .35 against .7"
  cheap = rerank_greedily(scores, LABELS, ATTRIBUTES, SlateRewardConfig(top=2, price=-2.0))
  assert cheap[0].tolist() == [2, 3, 0, 1], "the places that earn go by price, the others by score"


def test_the_greedy_order_of_true_probabilities_earns_what_the_best_order_does():
  rng = np.random.default_rng(0)
  utilities = rng.normal(size=(20, 5))
  attributes = SlateAttributes(rng.integers(3, size=(20, 5)), rng.normal(size=(20, 5)).astype(np.float32), rng.random((20, 5)) < 0.3)
  truth = Truth(choice_probabilities(utilities), choice_probabilities(utilities))
  whole = SlateView(np.eye(5, dtype=int)[rng.integers(5, size=20)], attributes, truth, SlateRewardConfig(top=3, diversity=0.3))
  greedy = whole.reward(rerank_greedily(utilities, whole.labels, attributes, whole.config))
  best = np.max([whole.reward(np.tile(order, (20, 1))) for order in itertools.permutations(range(5))], axis=0)
  assert (greedy <= best + 1e-6).all() and greedy.mean() > best.mean() - 0.01


def test_held_out_slates_choose_how_far_to_go():
  """Scores that are far too sure, so that at the reward's own weight nothing moves; the held-out slates ask for twice as much."""
  scores = 100 * np.log(np.maximum(CHOICE, 1e-9))
  of_small = view(SlateRewardConfig(top=3, small_brands=0.8), truth=Truth(CHOICE, CHOICE))
  assert rerank_greedily(scores, LABELS, ATTRIBUTES, of_small.config)[:, 0].tolist() == [0, 0]
  rankings, chosen = rerank_as_chosen((scores, scores), of_small, of_small)
  assert rankings[:, 0].tolist() == [3, 1] and chosen["scale"] == 2
