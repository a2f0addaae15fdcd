import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.objectives import plackett_luce
from gr2_jax.objectives.plackett_luce import first_place_entropy, place_log_probs

SCORES = np.float32([[0.3, -1.0, 1.2, 50.0], [0.0, 0.0, 2.0, -1.0]])
MASK = np.array([[True, True, True, False], [True, True, True, True]])

draw_rankings = jax.jit(plackett_luce.draw_rankings, static_argnums=3)
ranking_log_probs = jax.jit(plackett_luce.ranking_log_probs)
place_distributions = jax.jit(plackett_luce.place_distributions)


def by_hand(scores, ranking):
  left, total = list(ranking), 0.0
  for candidate in ranking:
    total += scores[candidate] - np.log(np.exp([scores[i] for i in left]).sum())
    left.remove(candidate)
  return total


def test_log_probabilities_by_hand_sum_to_one():
  for row, size in ((0, 3), (1, 4)):
    orders = list(itertools.permutations(range(size)))
    rankings = np.array([[*order, *range(size, 4)] for order in orders])
    found = ranking_log_probs(SCORES[row], rankings, MASK[row])
    np.testing.assert_allclose(found, [by_hand(np.asarray(SCORES[row]), order) for order in orders], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-5)


def test_draws_have_the_stated_probabilities_and_padding_stays_last():
  rankings = draw_rankings(jax.random.key(0), SCORES, MASK, 20_000)
  assert rankings.shape == (2, 20_000, 4) and (rankings[0, :, 3] == 3).all()
  orders, counts = np.unique(np.asarray(rankings[1]), axis=0, return_counts=True)
  expected = np.exp(ranking_log_probs(SCORES[1], orders, MASK[1]))
  assert expected.sum() > 0.99
  np.testing.assert_allclose(counts / 20_000, expected, atol=4 * np.sqrt(0.25 / 20_000))


def test_the_gradient_is_finite_and_none_at_the_padding():
  rankings = draw_rankings(jax.random.key(1), SCORES, MASK, 5)
  gradient = np.asarray(jax.jit(jax.grad(lambda scores: ranking_log_probs(scores, rankings, MASK).sum()))(SCORES))
  assert np.isfinite(gradient).all() and gradient[0, 3] == 0
  np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-4)  # a shift of all scores changes no probability


def test_the_score_function_has_mean_zero():
  rankings = draw_rankings(jax.random.key(2), SCORES, MASK, 20_000)
  mean = jax.jit(jax.grad(lambda scores: ranking_log_probs(scores, rankings, MASK).mean(axis=-1).sum()))(SCORES)
  np.testing.assert_allclose(mean, 0, atol=0.03)


def test_entropy_of_the_first_place():
  found = first_place_entropy(jnp.array([[0.0, 0.0, 9.0], [0.0, 500.0, 0.0]]), jnp.array([[True, True, False], [True, True, True]]))
  np.testing.assert_allclose(found, [np.log(2), 0.0], atol=1e-5)


def test_through_a_candidate_is_the_sum_over_all_that_may_follow():
  """[2, 3, 4] rankings of two slates, each through its own candidates; the first slate has three, the second two that count."""
  rankings = np.array([[[2, 0, 1, 3], [0, 1, 2, 3], [1, 2, 0, 3], [0, 2, 1, 3]], [[3, 1, 0, 2], [2, 1, 3, 0], [1, 3, 2, 0], [0, 2, 1, 3]]])
  last = np.array([[1, 0, 0, 0], [0, 1, 1, 0]])

  def by_hand_of(scores, row, ranking):
    size = 3 if row == 0 else 4
    places = 1 + max(list(ranking).index(candidate) for candidate in np.flatnonzero(last[row]))
    completions = [order for order in itertools.permutations(range(size)) if list(order[:places]) == list(ranking[:places])]
    padded = np.array([[*order, *range(size, 4)] for order in completions])
    return jax.nn.logsumexp(ranking_log_probs(scores[row], padded, MASK[row]))

  @jax.jit
  def brute_force(scores):
    return jnp.array([[by_hand_of(scores, row, ranking) for ranking in rankings[row]] for row in range(2)])

  found = ranking_log_probs(SCORES, rankings, MASK, last)
  np.testing.assert_allclose(found, brute_force(SCORES), rtol=1e-5)
  assert (np.abs(found - ranking_log_probs(SCORES, rankings, MASK))[:, :3] > 1e-3).any(axis=1).all()
  gradients = [
    jax.jit(jax.grad(lambda scores, of=of: of(scores).sum()))(SCORES)
    for of in (lambda x: ranking_log_probs(x, rankings, MASK, last), brute_force)
  ]
  np.testing.assert_allclose(*gradients, atol=1e-5)
  assert (ranking_log_probs(SCORES, rankings, MASK, np.zeros((2, 4))) == 0).all()


def test_distributions_of_places_are_those_of_who_is_left():
  rankings = np.array([[[2, 0, 1, 3]], [[3, 1, 0, 2]]])
  found = np.asarray(place_distributions(SCORES, rankings, MASK))
  np.testing.assert_allclose(np.diagonal(found, axis1=2, axis2=3)[1], place_log_probs(SCORES, rankings, MASK)[1], rtol=1e-6)
  for row, size in ((0, 3), (1, 4)):
    for place in range(size):
      left = SCORES[row, rankings[row, 0, place:size]]
      np.testing.assert_allclose(found[row, 0, place, place:size], left - np.log(np.exp(left).sum()), rtol=1e-5, atol=1e-6)
      assert (found[row, 0, place, :place] < -1e29).all() and (found[row, 0, place, size:] < -1e29).all()
  assert (found[0, 0, 3] < -1e29).all()
