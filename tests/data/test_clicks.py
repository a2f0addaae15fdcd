"""Clicks on a market's slates: what is examined is what is seen, and only that biases them."""

import numpy as np

from gr2_jax.data.clicks import draw_clicks, expected_gains
from gr2_jax.data.market import MarketConfig, make_market

UTILITIES = np.float32([[2.0, 0.0, 1.0, -3.0]])
DRAWS = 40_000


def test_rates_are_attraction_times_examination_by_hand():
  labels, propensities = draw_clicks(np.repeat(UTILITIES, DRAWS, axis=0), 1.0, np.random.default_rng(0))
  np.testing.assert_allclose(propensities[0], [1, 1 / 2, 1 / 3, 1 / 4])
  clicked, bought = 1 / (1 + np.exp(2.5 - UTILITIES[0])), 1 / (1 + np.exp(1 - UTILITIES[0] / 2))  # their mean is 0
  np.testing.assert_allclose((labels > 0).mean(axis=0), clicked * propensities[0], atol=0.01)
  np.testing.assert_allclose((labels[:, 0] == 2).sum() / (labels[:, 0] > 0).sum(), bought[0], atol=0.01)
  assert labels.dtype == np.int32 and set(np.unique(labels)) == {0, 1, 2}


def test_the_mean_gain_of_what_is_all_seen_is_the_expected_one():
  labels, propensities = draw_clicks(np.repeat(UTILITIES, DRAWS, axis=0), 0.0, np.random.default_rng(1))
  assert (propensities == 1).all()
  np.testing.assert_allclose((2.0**labels - 1).mean(axis=0), expected_gains(UTILITIES)[0], atol=0.02)


def test_weighed_by_propensity_biased_gains_are_right_on_average_and_unweighed_ones_are_not():
  labels, propensities = draw_clicks(np.repeat(UTILITIES, DRAWS, axis=0), 1.5, np.random.default_rng(2))
  gains, expected = 2.0**labels - 1, expected_gains(UTILITIES)[0]
  np.testing.assert_allclose((gains / propensities).mean(axis=0), expected, atol=0.03)
  assert abs(gains.mean(axis=0) - expected)[2] > 0.1


def test_clicks_leave_the_market_as_it_is():
  config = MarketConfig(num_items=120, train_slates=30, validation_slates=5, test_slates=5)
  before = make_market(config, 3)
  draw_clicks(before.utilities["train"], 1.0, np.random.default_rng(0))
  assert before.slates == make_market(config, 3).slates
