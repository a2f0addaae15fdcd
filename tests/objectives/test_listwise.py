import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.objectives.listwise import listwise_cross_entropy

SCORES = jnp.array([[1.0, -2.0, 0.5, -jnp.inf], [0.3, 0.1, -1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
LABELS = jnp.array([[0, 1, 0, -1], [1, 0, 2, 0], [0, 0, 0, 0]])
MASK = LABELS >= 0


def test_the_loss_by_hand():
  losses, counts = listwise_cross_entropy(SCORES, LABELS, MASK)
  first = np.exp([1.0, -2.0, 0.5])
  second = np.exp([0.3, 0.1, -1.0, 2.0])
  p = second / second.sum()
  np.testing.assert_allclose(losses, [-np.log(first[1] / first.sum()), -np.log(p[0]) / 3 - 2 * np.log(p[2]) / 3, 0.0], rtol=1e-5)
  np.testing.assert_array_equal(counts, [True, True, False])


def test_the_gradient_is_softmax_minus_labels_and_none_under_the_mask():
  gradient = jax.grad(lambda scores: listwise_cross_entropy(scores, LABELS, MASK)[0].sum())(SCORES)
  p = jax.nn.softmax(SCORES, axis=-1)
  np.testing.assert_allclose(gradient[0], p[0] - jnp.array([0, 1, 0, 0]), atol=1e-6)
  np.testing.assert_allclose(gradient[1], p[1] - jnp.array([1, 0, 2, 0]) / 3, atol=1e-6)
  np.testing.assert_array_equal(gradient[2], 0.0)
  assert gradient[0, 3] == 0.0


def test_labels_that_sum_to_less_than_one_are_normalised_as_well():
  losses, counts = listwise_cross_entropy(SCORES, LABELS, MASK)
  scaled, of_scaled = listwise_cross_entropy(SCORES, LABELS * 0.25, MASK)
  np.testing.assert_allclose(scaled, losses, rtol=1e-6)
  np.testing.assert_array_equal(of_scaled, counts)
