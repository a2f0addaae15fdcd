"""Soft overlong shaping."""

import numpy as np
import pytest

from gr2_jax.rewards.overlong import soft_overlong_penalty


def test_hand_derived_penalties():
  # Limit 100, zone 20: free up to 80, half way through the zone -0.5, the whole penalty at 100 and beyond.
  np.testing.assert_allclose(soft_overlong_penalty(np.array([1, 80, 90, 100, 130]), 100, 20), [0, 0, -0.5, -1, -1])


def test_no_zone_punishes_only_what_exceeds_the_limit():
  np.testing.assert_array_equal(soft_overlong_penalty(np.array([99, 100, 101]), 100, 0), [0, 0, -1])


def test_a_zone_larger_than_the_limit_is_refused():
  with pytest.raises(ValueError, match="zone: 200 tokens"):
    soft_overlong_penalty(np.array([1]), 100, 200)
