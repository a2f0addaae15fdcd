"""The reward of whole slates: each term by hand, its bias under propensities, and bad settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.data.clicks import draw_clicks, expected_gains
from gr2_jax.rewards.own import Answers, Slates
from gr2_jax.rewards.slate import SlateRewardConfig, compute_slate_terms, make_slate_reward
from gr2_jax.runs.feedback import weigh_by_propensity

LABELS = np.array([[0, 1, 0, 2], [1, 0, -1, -1]])
SLATES = Slates(
  labels=jnp.asarray(LABELS),
  shown=jnp.tile(jnp.arange(4), (2, 1)),
  mask=jnp.asarray(LABELS >= 0),
  gains=jnp.asarray(np.where(LABELS < 0, -1.0, 2.0**LABELS - 1)),
  brands=jnp.array([[5, 5, 7, -1], [-1, -1, -1, -1]]),
  prices=jnp.array([[1.0, -1.0, 0.5, -0.5], [2.0, -2.0, 9.0, 9.0]]),
  small=jnp.array([[False, True, False, False], [False, True, True, True]]),
)
RANKINGS = jnp.array([[[1, 0, 2, 3], [3, 2, 1, 0]], [[1, 0, -1, -1], [0, 1, -1, -1]]])


def test_terms_of_the_first_three_by_hand():
  terms = compute_slate_terms(3, RANKINGS, SLATES)
  discount = 1 / np.log2([2, 3, 4])
  np.testing.assert_allclose(terms.dcg, [[1.0, 3 * discount[0] + discount[2]], [discount[1], 1.0]], rtol=1e-6)
  np.testing.assert_allclose(terms.brands, [[2 / 3, 1], [1, 1]], rtol=1e-6)  # an unknown brand is no other's
  np.testing.assert_allclose(terms.price, [[0.5 / 3, -1 / 3], [0, 0]], atol=1e-6)  # of the two that there are
  assert terms.small.tolist() == [[1, 0], [1, 0]]


def test_the_reward_is_the_sum_of_what_is_weighed():
  config = SlateRewardConfig(top=3, diversity=0.5, price=-2.0, small_brands=0.25)
  terms = compute_slate_terms(3, RANKINGS, SLATES)
  answers = Answers(RANKINGS, jnp.ones((2, 2), bool), jnp.zeros((2, 2), int))
  rewards = make_slate_reward(config)(answers, SLATES)
  np.testing.assert_allclose(rewards.total, terms.dcg + 0.5 * terms.brands - 2 * terms.price + 0.25 * terms.small, rtol=1e-6)
  assert (rewards.raw == rewards.total).all()
  alone = make_slate_reward(SlateRewardConfig(top=3))(answers, SLATES)
  np.testing.assert_array_equal(alone.total, terms.dcg)


def test_weighed_by_propensity_the_reward_of_clicks_is_right_on_average_for_any_ranking():
  """Over simulated clicks against the reward of what everything seen would bring."""
  utilities = np.float32([[1.5, 0.5, -1.0, -1.0]])
  labels, propensities = draw_clicks(np.repeat(utilities, 60_000, axis=0), 1.0, np.random.default_rng(0))

  def reward(gains, ranking):
    many = SLATES._replace(**{name: jnp.zeros(gains.shape, kind) for name, kind in (("brands", int), ("prices", float), ("small", bool))})
    of = many._replace(gains=jnp.asarray(gains, jnp.float32), mask=jnp.ones(gains.shape, bool))
    rankings = jnp.broadcast_to(jnp.array(ranking), (len(gains), 1, 4))
    answers = Answers(rankings, jnp.ones(rankings.shape[:2], bool), jnp.zeros(rankings.shape[:2], int))
    return float(make_slate_reward(SlateRewardConfig(top=3))(answers, of).total.mean())

  gains = 2.0**labels - 1
  for ranking in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
    true = reward(expected_gains(utilities), ranking)
    assert reward(weigh_by_propensity(gains, propensities, 10.0), ranking) == pytest.approx(true, abs=0.012)
    assert reward(gains, ranking) < true - 0.03
    assert reward(weigh_by_propensity(gains, propensities, 1.5), ranking) < true - 0.012, "clipped: less variance, some bias"


@pytest.mark.parametrize("name", ["diversity", "price", "small_brands"])
def test_a_term_without_places_is_named(name):
  with pytest.raises(ValueError, match=rf"^{name}: 0\.5 is of the first places, and top names none; set top to 3"):
    SlateRewardConfig(**{name: 0.5})
  assert SlateRewardConfig(top=1, **{name: 0.5}).pays_besides and not SlateRewardConfig(top=1).pays_besides
