"""Weighted means: numpy's own for weights of 1, by hand for others."""

import numpy as np
import pytest

from gr2_jax.evaluation.weights import check_weights, weighted_mean


@pytest.mark.parametrize("dtype", [np.float64, np.float32, bool])
@pytest.mark.parametrize("shape", [(1,), (7,), (1000,), (5001,), (1000, 3), (129, 17)])
def test_weights_of_1_give_numpys_mean_to_the_last_digit(dtype, shape):
  values = np.random.default_rng(0).random(shape)
  values = values > 0.5 if dtype is bool else values.astype(dtype)
  of = weighted_mean(values, check_weights(None, len(values)))
  np.testing.assert_array_equal(of, values.mean(axis=0))
  assert of.dtype == values.mean(axis=0).dtype


def test_a_mean_by_hand():
  assert weighted_mean(np.array([1.0, 4.0]), np.array([2.0, 1.0])) == 2
  assert weighted_mean(np.array([[True, False], [False, True]]), np.array([3.0, 1.0])).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((2, 1)), np.array([1.0, 0.0]), np.array([1.0, np.inf])])
def test_weights_that_are_none_are_named(weights):
  with pytest.raises(ValueError, match="weights"):
    check_weights(weights, 2)
