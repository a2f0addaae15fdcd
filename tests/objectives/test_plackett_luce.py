import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.objectives.plackett_luce import draw_rankings, first_place_entropy, ranking_log_probs

SCORES = jnp.array([[0.3, -1.0, 1.2, 50.0], [0.0, 0.0, 2.0, -1.0]])
MASK = jnp.array([[True, True, True, False], [True, True, True, True]])


def by_hand(scores, ranking):
  left, total = list(ranking), 0.0
  for candidate in ranking:
    total += scores[candidate] - np.log(np.exp([scores[i] for i in left]).sum())
    left.remove(candidate)
  return total


def test_log_probabilities_by_hand_sum_to_one():
  for row, size in ((0, 3), (1, 4)):
    orders = list(itertools.permutations(range(size)))
    rankings = jnp.array([[*order, *range(size, 4)] for order in orders])
    found = ranking_log_probs(SCORES[row], rankings, MASK[row])
    np.testing.assert_allclose(found, [by_hand(np.asarray(SCORES[row]), order) for order in orders], rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(found).sum(), 1.0, rtol=1e-5)


def test_draws_have_the_stated_probabilities_and_padding_stays_last():
  rankings = draw_rankings(jax.random.key(0), SCORES, MASK, 20_000)
  assert rankings.shape == (2, 20_000, 4) and (rankings[0, :, 3] == 3).all()
  orders, counts = np.unique(np.asarray(rankings[1]), axis=0, return_counts=True)
  expected = np.exp(ranking_log_probs(SCORES[1], jnp.asarray(orders), MASK[1]))
  assert expected.sum() > 0.99
  np.testing.assert_allclose(counts / 20_000, expected, atol=4 * np.sqrt(0.25 / 20_000))


def test_the_gradient_is_finite_and_none_at_the_padding():
  rankings = draw_rankings(jax.random.key(1), SCORES, MASK, 5)
  gradient = jax.grad(lambda scores: ranking_log_probs(scores, rankings, MASK).sum())(SCORES)
  assert jnp.isfinite(gradient).all() and gradient[0, 3] == 0
  np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-4)  # a shift of all scores changes no probability


def test_the_score_function_has_mean_zero():
  rankings = draw_rankings(jax.random.key(2), SCORES, MASK, 20_000)
  mean = jax.grad(lambda scores: ranking_log_probs(scores, rankings, MASK).mean(axis=-1).sum())(SCORES)
  np.testing.assert_allclose(mean, 0, atol=0.03)


def test_entropy_of_the_first_place():
  found = first_place_entropy(jnp.array([[0.0, 0.0, 9.0], [0.0, 500.0, 0.0]]), jnp.array([[True, True, False], [True, True, True]]))
  np.testing.assert_allclose(found, [np.log(2), 0.0], atol=1e-5)
