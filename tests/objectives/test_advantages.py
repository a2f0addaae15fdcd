import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.objectives.advantages import group_advantages


def test_hand_derived_values():
  # Rewards 1, 0, 0, 1: mean 1/2, deviations ±1/2, population std 1/2, so advantages ±1.
  advantages, keep = group_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]]), jnp.array([[1.0, 0.0, 0.0, 1.0]]))
  np.testing.assert_allclose(advantages, [[1, -1, -1, 1]], rtol=1e-6)
  assert keep.tolist() == [True]


def test_std_floor_keeps_tiny_differences_small():
  # Rewards ±1e-5 around 0 have std 1e-5, below the floor of 1e-4: advantages ±0.1 where plain normalisation gives ±1.
  rewards = jnp.array([[1e-5, -1e-5]])
  advantages, keep = group_advantages(rewards, rewards)
  np.testing.assert_allclose(advantages, [[0.1, -0.1]], rtol=1e-4)
  assert keep.tolist() == [True]


def test_without_the_standard_deviation_only_the_mean_is_taken_off():
  # Dr. GRPO: rewards 1, 0, 0, 1 have the mean 1/2. A group that is not kept stays at 0.
  rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
  advantages, keep = group_advantages(rewards, rewards, divide_by="none")
  np.testing.assert_allclose(advantages, [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]], rtol=1e-6)
  assert keep.tolist() == [True, False]


def test_divided_by_the_mean_they_are_the_gradient_of_the_log_of_the_expected_reward():
  # Rewards 1, 0, 0, 0 have the mean 1/4: advantages 3, -1, -1, -1. An unknown divisor is refused.
  rewards = jnp.array([[1.0, 0.0, 0.0, 0.0]])
  advantages, _ = group_advantages(rewards, rewards, divide_by="mean")
  np.testing.assert_allclose(advantages, [[3.0, -1.0, -1.0, -1.0]], rtol=1e-6)
  with pytest.raises(ValueError, match="divide_by: 'median' is not known; choose std, mean, none"):
    group_advantages(rewards, rewards, divide_by="median")


def test_groups_are_judged_on_the_raw_reward():
  # Group 0: equal raw rewards, and only the shaping (an overlong penalty) differs. Group 1: raw rewards differ, shaping evens them out.
  rewards = jnp.array([[0.0, -1.0], [0.5, 0.5]])
  raw_rewards = jnp.array([[0.0, 0.0], [0.5, 0.0]])
  advantages, keep = group_advantages(rewards, raw_rewards)
  assert keep.tolist() == [False, True]
  np.testing.assert_array_equal(advantages, np.zeros((2, 2)))


@pytest.mark.parametrize("value", [0.1, -0.3, 1e6])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_equal_rewards_give_exact_zeros_and_are_dropped(value, group):
  rewards = jnp.full((2, group), value)
  advantages, keep = group_advantages(rewards, rewards)
  np.testing.assert_array_equal(advantages, np.zeros((2, group)))
  assert not keep.any()


def test_a_reward_that_is_not_finite_drops_its_group_only():
  rewards = jnp.array([[1.0, jnp.nan], [1.0, 0.0]])
  advantages, keep = group_advantages(rewards, rewards)
  assert keep.tolist() == [False, True]
  np.testing.assert_allclose(advantages, [[0, 0], [1, -1]], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4))
def test_advantages_have_mean_zero_and_at_most_unit_variance(rewards):
  values = jnp.array([rewards])
  advantages, keep = group_advantages(values, values)
  assert abs(float(advantages.mean())) < 1e-4
  assert float(jnp.sqrt((advantages**2).mean())) < 1 + 1e-3
  assert bool(keep[0]) == (np.std(rewards) >= 1e-6)
