"""The scores that choose a step are those of their definition, on real candidates, by the slates' weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.evaluation.held_out import likelihood_of_labels, likelihood_of_rankings, quality_of_order, reward_of_order
from gr2_jax.rewards.own import Rewards

LABELS = np.array([[0, 1, 0, -1], [1, 0, 2, 0]], np.int32)
WEIGHTS = np.array([1.0, 3.0], np.float32)
SCORES = np.array([[0.5, 1.0, -2.0, 9.0], [0.3, 2.0, 0.1, -1.0]], np.float32)
PADDED = SCORES.copy()
PADDED[0, 3] = -7


def log_p(scores):
  return scores - np.log(np.exp(scores).sum())


def test_the_labels_likelihood_by_hand():
  first, second = log_p(SCORES[0, :3]), log_p(SCORES[1])
  by_hand = (1 * first[1] + 3 * (second[0] + 2 * second[2]) / 3) / 4
  score = likelihood_of_labels(LABELS, WEIGHTS)
  assert score(SCORES) == pytest.approx(by_hand, rel=1e-5)
  assert score(PADDED) == score(SCORES)


def test_the_rankings_likelihood_by_hand():
  rankings = np.array([[1, 2, 0, 3], [2, 0, 1, 3]], np.int32)

  def of(scores):
    return sum(log_p(scores[place:])[0] for place in range(len(scores)))

  by_hand = (1 * of(SCORES[0, [1, 2, 0]]) + 3 * of(SCORES[1, [2, 0, 1, 3]])) / 4
  score = likelihood_of_rankings(LABELS, WEIGHTS, rankings)
  assert score(SCORES) == pytest.approx(by_hand, rel=1e-5)
  assert score(PADDED) == pytest.approx(score(SCORES), rel=1e-6)


def test_the_order_s_quality_by_hand():
  # First slate: the target first, whatever the padding's score; all three are 1. Second: 1, 0 (label 1), 2 (label 2), 3: of its two
  # positives none is first; the gains 2^label - 1 are 0, 1, 3.
  gain = 1 / np.log2(3) + 3 / np.log2(4)
  ideal = 3 + 1 / np.log2(3)
  by_hand = (1 * 1 + 3 * (0 + 2 * gain / ideal) / 3) / 4
  score = quality_of_order(LABELS, WEIGHTS)
  assert score(SCORES) == pytest.approx(by_hand, rel=1e-5)
  assert score(PADDED) == score(SCORES)
  assert score(np.exp(SCORES)) == score(SCORES), "the order alone counts"


@pytest.mark.parametrize("build", [likelihood_of_labels, quality_of_order])
def test_a_better_place_for_the_target_is_a_higher_score(build):
  better = SCORES.copy()
  better[1, 2] = 3
  score = build(LABELS, WEIGHTS)
  assert score(better) > score(SCORES)


def test_a_slate_without_weight_does_not_count():
  weights = np.array([1.0, 0.0], np.float32)
  rankings = np.array([[1, 2, 0, 3], [2, 0, 1, 3]], np.int32)
  changed = SCORES.copy()
  changed[1] = changed[1, ::-1]
  for score in (
    likelihood_of_labels(LABELS, weights),
    likelihood_of_rankings(LABELS, weights, rankings),
    quality_of_order(LABELS, weights),
  ):
    assert score(changed) == score(SCORES) != 0


def test_the_order_s_reward_is_that_of_the_function_on_full_rankings():
  """The padding, whatever its score, is no candidate to the function."""

  def reward(answers, slates):
    assert answers.texts is None and answers.valid.shape == answers.rankings.shape[:2] == (2, 1)
    first = jnp.take_along_axis(slates.gains, answers.rankings[:, 0, :1], axis=1)
    listed = jnp.sum(answers.rankings[:, 0] >= 0, axis=-1, keepdims=True)
    return Rewards(first + 10 * listed, first)

  gains = np.float32([[0.5, 7.0, 0.1, -1], [2.0, 3.0, 4.0, 0.0]])
  score = reward_of_order(reward, {"labels": LABELS, "gains": gains}, WEIGHTS)
  assert score(SCORES) == score(PADDED) == pytest.approx((1 * (7 + 30) + 3 * (3 + 40)) / 4)
