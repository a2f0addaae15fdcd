import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.objectives.policy import clipped_policy_loss


def _naive(logps, behaviour, advantages, mask, low, high):
  total, count = 0.0, 0
  for row in range(logps.shape[0]):
    for place in range(logps.shape[1]):
      if mask[row, place]:
        ratio = np.exp(logps[row, place] - behaviour[row, place])
        clipped = min(max(ratio, 1 - low), 1 + high)
        total -= min(ratio * advantages[row], clipped * advantages[row])
        count += 1
  return total, count


def test_hand_derived_values():
  # Ratios 1, 1.5, 0.5 with A = 1: min(1, 1), min(1.5, 1.28), min(0.5, 0.8) = 1, 1.28, 0.5.
  # The same with A = -2: min(-2, -2), min(-3, -2.56), min(-1, -1.6) = -2, -3, -1.6. The loss is minus the sum: -(2.78 - 6.6).
  logps = jnp.log(jnp.array([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]]))
  loss = clipped_policy_loss(logps, jnp.zeros((2, 3)), jnp.array([1.0, -2.0]), jnp.ones((2, 3)))
  np.testing.assert_allclose(loss.loss_sum, 3.82, rtol=1e-5)
  assert loss.token_count == 6
  sums = {name: float(total) for name, (total, _) in loss.diagnostics.items()}
  assert sums["clip_high_fraction"] == 1 and sums["clip_low_fraction"] == 1
  np.testing.assert_allclose(sums["ratio"], 6.0, rtol=1e-5)
  # r - 1 - log r: 0, 0.5 - log 1.5, -0.5 + log 2 in each row.
  np.testing.assert_allclose(sums["approx_kl"], 2 * (np.log(2) - np.log(1.5)), rtol=1e-4)
  np.testing.assert_allclose(sums["logp_gap"], 2 * (np.log(1.5) + np.log(2)), rtol=1e-5)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [-1.0, 0.0, -0.5]), (-1.0, [1.0, 1.5, 0.0])])
def test_gradient_is_zero_where_clipped(advantage, expected):
  # d/dlogp of -r A is -r A; it vanishes above 1 + clip_high for A > 0 and below 1 - clip_low for A < 0.
  logps = jnp.log(jnp.array([[1.0, 1.5, 0.5]]))

  def loss(logps):
    return clipped_policy_loss(logps, jnp.zeros((1, 3)), jnp.array([advantage]), jnp.ones((1, 3))).loss_sum

  np.testing.assert_allclose(jax.grad(loss)(logps), [expected], rtol=1e-5)


def test_masked_places_count_nowhere_and_pass_no_gradient():
  logps = jnp.array([[0.1, 500.0, -jnp.inf]])
  mask = jnp.array([[1.0, 0.0, 0.0]])
  value, gradient = jax.value_and_grad(lambda logps: clipped_policy_loss(logps, jnp.zeros((1, 3)), jnp.ones(1), mask).loss_sum)(logps)
  np.testing.assert_allclose(value, -np.exp(0.1), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-np.exp(0.1), 0.0, 0.0]], rtol=1e-6)


def test_all_masked_is_zero_over_zero_tokens():
  loss = clipped_policy_loss(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(2), jnp.zeros((2, 3)))
  assert loss.loss_sum == 0 and loss.token_count == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_equals_a_naive_loop_and_adds_over_microbatches(seed, low, high):
  random = np.random.default_rng(seed)
  logps, behaviour = random.normal(size=(2, 4, 5)).astype(np.float32) * 0.4
  advantages = random.normal(size=4).astype(np.float32)
  mask = random.random((4, 5)) < 0.7

  def loss(rows):
    return clipped_policy_loss(logps[rows], behaviour[rows], advantages[rows], mask[rows], clip_low=low, clip_high=high)

  whole, parts = loss(slice(None)), [loss(slice(0, 1)), loss(slice(1, 4))]
  total, count = _naive(logps, behaviour, advantages, mask, low, high)
  np.testing.assert_allclose(whole.loss_sum, total, rtol=1e-4, atol=1e-4)
  assert whole.token_count == count == sum(part.token_count for part in parts)
  np.testing.assert_allclose(sum(part.loss_sum for part in parts), total, rtol=1e-4, atol=1e-4)
