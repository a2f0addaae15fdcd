"""Every published loss against a naive loop, and its gradient where it can be written down."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, loss_denominator, policy_loss, truncated_importance_weights

GRPO = PolicyLossConfig(aggregation="sequence_mean", clip_high=0.2)
DR_GRPO = PolicyLossConfig(aggregation="constant_length", clip_high=0.2)
GSPO = PolicyLossConfig(aggregation="sequence_mean", ratio="sequence", clip_low=0.05, clip_high=0.08)


def _surrogate(ratio, advantage, config):
  return min(ratio * advantage, min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * advantage)


def _naive(logps, old, advantages, mask, weights, config):
  """The loss of each paper as it is written there, one token at a time; sequences without a token are left out."""
  sequences = []  # one list of token terms each
  for row in range(logps.shape[0]):
    places = [place for place in range(logps.shape[1]) if mask[row, place]]
    log_ratios = [logps[row, place] - old[row, place] for place in places]
    if config.ratio == "sequence" and places:
      log_ratios = [sum(log_ratios) / len(places)] * len(places)
    terms = [weights[row, place] * _surrogate(np.exp(x), advantages[row], config) for place, x in zip(places, log_ratios, strict=True)]
    if terms:
      sequences.append(terms)
  if config.aggregation == "token_mean":
    return -sum(map(sum, sequences)) / sum(map(len, sequences))
  if config.aggregation == "sequence_mean":
    return -sum(sum(terms) / len(terms) for terms in sequences) / len(sequences)
  return -sum(sum(terms) / logps.shape[1] for terms in sequences) / len(sequences)


def test_hand_derived_values():
  # Ratios 1, 1.5, 0.5 with A = 1: min(1, 1), min(1.5, 1.28), min(0.5, 0.8) = 1, 1.28, 0.5.
  # The same with A = -2: min(-2, -2), min(-3, -2.56), min(-1, -1.6) = -2, -3, -1.6. The loss is minus the sum: -(2.78 - 6.6).
  logps = jnp.log(jnp.array([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]]))
  loss = policy_loss(logps, jnp.zeros((2, 3)), jnp.array([1.0, -2.0]), jnp.ones((2, 3)), DAPO)
  np.testing.assert_allclose(loss.loss_sum, 3.82, rtol=1e-5)
  assert loss.denominator == 6
  sums = {name: float(total) for name, (total, _) in loss.diagnostics.items()}
  assert sums["clip_high_fraction"] == 1 and sums["clip_low_fraction"] == 1
  np.testing.assert_allclose(sums["ratio"], 6.0, rtol=1e-5)
  # r - 1 - log r: 0, 0.5 - log 1.5, -0.5 + log 2 in each row.
  np.testing.assert_allclose(sums["approx_kl"], 2 * (np.log(2) - np.log(1.5)), rtol=1e-4)


@pytest.mark.parametrize(
  ("config", "total", "denominator"),
  [
    # One completion of 1 token with A = 1, one of 3 with A = -1, a limit of 4 tokens; all ratios are 1.
    (DAPO, 1 * -1 + 3, 1 + 3),
    (GRPO, -1 + 1, 2),
    (DR_GRPO, 1 * -1 + 3, 2 * 4),
  ],
)
def test_aggregations_weigh_lengths_differently(config, total, denominator):
  mask = jnp.array([[1, 0, 0, 0], [1, 1, 1, 0]])
  loss = policy_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.array([1.0, -1.0]), mask, config)
  np.testing.assert_allclose(loss.loss_sum, total, atol=1e-6)
  assert loss.denominator == denominator == loss_denominator(mask, config.aggregation)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, [-1.0, 0.0, -0.5]), (-1.0, [1.0, 1.5, 0.0])])
def test_gradient_is_zero_where_clipped(advantage, expected):
  # d/dlogp of -r A is -r A; it vanishes above 1 + clip_high for A > 0 and below 1 - clip_low for A < 0.
  logps = jnp.log(jnp.array([[1.0, 1.5, 0.5]]))

  def loss(logps):
    return policy_loss(logps, jnp.zeros((1, 3)), jnp.array([advantage]), jnp.ones((1, 3)), DAPO).loss_sum

  np.testing.assert_allclose(jax.grad(loss)(logps), [expected], rtol=1e-5)


def test_sequence_ratio_is_the_geometric_mean_and_shares_its_gradient():
  # Ratios 2 and 1/2 have the geometric mean 1, inside the clip, where each token's ratio is far outside: each token's gradient
  # is -s A / |o| = -1/2. In the second row 1.1 and 1.1 are above 1.08: clipped for A = 1, no gradient.
  logps = jnp.log(jnp.array([[2.0, 0.5], [1.1, 1.1]]))

  def loss(logps):
    return policy_loss(logps, jnp.zeros((2, 2)), jnp.ones(2), jnp.ones((2, 2)), GSPO).loss_sum

  value, gradient = jax.value_and_grad(loss)(logps)
  np.testing.assert_allclose(value, -(1 + 1.08), rtol=1e-5)
  np.testing.assert_allclose(gradient, [[-0.5, -0.5], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("config", [DAPO, GRPO, DR_GRPO, GSPO])
def test_masked_places_count_nowhere_and_pass_no_gradient(config):
  logps = jnp.array([[0.1, 500.0, -jnp.inf, jnp.nan], [jnp.nan, jnp.inf, -jnp.inf, 0.0]])
  mask = jnp.array([[1, 0, 0, 0], [0, 0, 0, 0]])

  def loss(logps):
    return policy_loss(logps, jnp.zeros((2, 4)), jnp.array([-1.0, 1.0]), mask, config).loss_sum

  value, gradient = jax.value_and_grad(loss)(logps)
  np.testing.assert_allclose(value, np.exp(0.1), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[np.exp(0.1), 0, 0, 0], [0] * 4], rtol=1e-6)


@pytest.mark.parametrize("config", [DAPO, GRPO, DR_GRPO, GSPO])
def test_all_masked_is_zero_over_nothing(config):
  loss = policy_loss(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.ones(2), jnp.zeros((2, 3)), config)
  assert loss.loss_sum == 0 and loss.denominator == 0


@pytest.mark.parametrize(
  ("aggregation", "ratio"), list(itertools.product(("token_mean", "sequence_mean", "constant_length"), ("token", "sequence")))
)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_equals_a_naive_loop_and_adds_over_microbatches(aggregation, ratio, seed, low, high):
  config = PolicyLossConfig(aggregation=aggregation, ratio=ratio, clip_low=low, clip_high=high, importance_cap=2.0)
  random = np.random.default_rng(seed)
  logps, old, sampler = random.normal(size=(3, 5, 6)).astype(np.float32) * 0.5
  advantages = random.normal(size=5).astype(np.float32)
  mask = np.arange(6) < np.array([random.integers(1, 7), 6, 1, 0, random.integers(0, 7)])[:, None]

  def loss(rows):
    weights = truncated_importance_weights(old[rows], sampler[rows], mask[rows], config.importance_cap)
    return policy_loss(logps[rows], old[rows], advantages[rows], mask[rows], config, importance_weights=weights)

  whole, parts = loss(slice(None)), [loss(slice(0, 1)), loss(slice(1, 5))]
  weights = np.array([[min(np.exp(old[i, t] - sampler[i, t]), 2.0) for t in range(6)] for i in range(5)])
  expected = _naive(logps, old, advantages, mask, weights, config)
  np.testing.assert_allclose(whole.loss_sum / whole.denominator, expected, rtol=1e-4, atol=1e-5)
  assert whole.denominator == sum(part.denominator for part in parts)
  np.testing.assert_allclose(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=1e-4, atol=1e-5)


def test_importance_weights_are_capped_and_pass_no_gradient():
  # Probability ratios 1.5, 4 and, under the mask, infinity: weights 1.5, the cap 2, and 1. On-policy the term is w A, its gradient too.
  sampler = jnp.log(jnp.array([[0.2, 0.1, 0.0]]))
  mask = jnp.array([[1, 1, 0]])

  def loss(logps):
    weights = truncated_importance_weights(logps, sampler, mask, 2.0)
    return policy_loss(logps, jax.lax.stop_gradient(logps), jnp.ones(1), mask, DAPO, importance_weights=weights).loss_sum

  logps = jnp.log(jnp.array([[0.3, 0.4, 0.5]]))
  value, gradient = jax.value_and_grad(loss)(logps)
  np.testing.assert_allclose(value, -3.5, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-1.5, -2.0, 0.0]], rtol=1e-5)


@pytest.mark.parametrize(
  "bad",
  [
    {"aggregation": "mean"},
    {"ratio": "prompt"},
    {"clip_low": 1.5},
    {"clip_high": -0.1},
    {"clip_high": float("nan")},
    {"importance_cap": 0.5},
  ],
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match=f"^{next(iter(bad))}: "):
    PolicyLossConfig(**bad)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant_length"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_weights_count_a_completion_as_often_as_they_say(aggregation, ratio):
  config = PolicyLossConfig(aggregation=aggregation, ratio=ratio)
  random = np.random.default_rng(0)
  logps, old = jnp.asarray(random.normal(size=(2, 4, 6)) * 0.5, jnp.float32)
  advantages = jnp.asarray(random.normal(size=4), jnp.float32)
  mask = jnp.asarray(np.arange(6) < np.array([3, 6, 0, 1])[:, None])

  def loss(rows, weights=None):
    rows = jnp.asarray(rows)
    value, gradient = jax.value_and_grad(
      lambda x: policy_loss(x[rows], old[rows], advantages[rows], mask[rows], config, weights=weights).loss_sum
    )(logps)
    denominator = policy_loss(logps[rows], old[rows], advantages[rows], mask[rows], config, weights=weights).denominator
    assert denominator == loss_denominator(mask[rows], aggregation, weights)
    return value, gradient, denominator

  once, twice = loss([0, 1, 2, 3], jnp.asarray([2.0, 1.0, 2.0, 0.0])), loss([0, 0, 1, 2, 2])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), once, twice)
  jax.tree.map(np.testing.assert_array_equal, loss([0, 1, 2, 3], jnp.ones(4)), loss([0, 1, 2, 3]))


def test_weights_leave_the_diagnostics_alone():
  arrays = (jnp.full((2, 3), 0.1), jnp.zeros((2, 3)), jnp.ones(2), jnp.ones((2, 3)))
  weighed, plain = (policy_loss(*arrays, DAPO, weights=weights).diagnostics for weights in (jnp.asarray([3.0, 0.5]), None))
  jax.tree.map(np.testing.assert_array_equal, weighed, plain)
