"""Golden values of every reward and condition, with their derivations."""

import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.kernels.rank_reward.api import MIN_RAW_STD
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards

INVALID = [-1] * 5


def rewards_of(config, rankings, labels, shown=None):
  """(total, raw) of one group over one slate of five."""
  shown = list(range(5)) if shown is None else shown
  rewards = compute_rewards(config, jnp.asarray([rankings]), jnp.asarray([labels]), jnp.asarray([shown]))
  return np.asarray(rewards.total[0]), np.asarray(rewards.rank_raw[0])


COPY = [0, 1, 2, 3, 4]


def test_v1_rule():
  # One target, upstream rank 3 of 5 (index 2). Copy: R = 0, not > 0, no format credit: 0. To the front: (3-1)/5 = 0.4, + 0.2.
  # One up: 0.2 + 0.2. To the end: (3-5)/5 = -0.4, no credit. Invalid: -1, and it stays in the group.
  labels = [0, 0, 1, 0, 0]
  group = [COPY, [2, 0, 1, 3, 4], [0, 2, 1, 3, 4], [0, 1, 3, 4, 2], INVALID]
  total, raw = rewards_of(RewardConfig("promotion", "v1"), group, labels)
  np.testing.assert_allclose(total, [0.0, 0.6, 0.4, -0.4, -1.0], atol=1e-6)
  np.testing.assert_allclose(raw, [0.0, 0.4, 0.2, -0.4, -1.0], atol=1e-6)


def test_v1_rule_where_upstream_has_the_target_first():
  # rank_D(y*) = 1: keeping it first earns the format credit although R = 0; losing it earns (1-2)/5 and nothing else.
  total, _ = rewards_of(RewardConfig("promotion", "v1"), [COPY, [0, 4, 3, 2, 1], [1, 0, 2, 3, 4]], [1, 0, 0, 0, 0])
  np.testing.assert_allclose(total, [0.2, 0.2, -0.2], atol=1e-6)


def test_naive_pays_for_copying():
  # The hole that v1's rule closes: a copy earns the format credit, 0 + 0.2.
  total, _ = rewards_of(RewardConfig("promotion", "naive"), [COPY, [0, 1, 3, 2, 4]], [0, 0, 1, 0, 0])
  np.testing.assert_allclose(total, [0.2, 0.0], atol=1e-6)  # one down: -1/5 + 0.2


def test_eq5_auc_under_eq7():
  # Target at index 1 of 5: a copy has 3 of the 4 negatives behind it, AUC 0.75 < 1, so Eq 7 leaves it alpha alone: 0.1.
  # To the front: 1 + 0.1. One down: 0.5 + 0.1. Invalid: no credit at all, 0.
  labels = [0, 1, 0, 0, 0]
  group = [COPY, [1, 0, 2, 3, 4], [0, 2, 1, 3, 4], INVALID]
  total, raw = rewards_of(RewardConfig("auc", "eq7"), group, labels)
  np.testing.assert_allclose(total, [0.1, 1.1, 0.6, 0.0], atol=1e-6)
  np.testing.assert_allclose(raw, [0.75, 1.0, 0.5, 0.0], atol=1e-6)


def test_eq7_lets_a_copy_of_the_best_order_be():
  # Upstream has the target first: R_rank(identity) = 1, so the identity rule does not apply: 1 + 0.1.
  total, _ = rewards_of(RewardConfig("auc", "eq7"), [COPY], [1, 0, 0, 0, 0])
  np.testing.assert_allclose(total, [1.1], atol=1e-6)


def test_eq7_has_a_hole_that_the_relative_reward_closes():
  # Swap the two tail items: no longer the identity, and under Eq 7 all of the 0.75 that upstream had earned comes back.
  # Relative to upstream the swap earned nothing: 0.75 - 0.75 = 0, and no format credit. A copy the same; invalid: -1.
  labels, group = [0, 1, 0, 0, 0], [COPY, [0, 1, 2, 4, 3], [1, 0, 2, 3, 4], INVALID]
  eq7, _ = rewards_of(RewardConfig("auc", "eq7"), group, labels)
  np.testing.assert_allclose(eq7, [0.1, 0.85, 1.1, 0.0], atol=1e-6)
  relative, raw = rewards_of(RewardConfig("auc", "relative"), group, labels)
  np.testing.assert_allclose(relative, [0.0, 0.0, 0.25 + 0.1, -1.0], atol=1e-6)
  np.testing.assert_allclose(raw, [0.0, 0.0, 0.25, -1.0], atol=1e-6)


def test_only_answers_that_beat_upstream_earn_rank_credit_under_the_improving_rule():
  # Upstream earns 0.75. No better than that, by a copy, a swap of the tail or a target moved down: alpha alone. To the front: 1 + 0.1.
  labels, group = [0, 1, 0, 0, 0], [COPY, [0, 1, 2, 4, 3], [0, 2, 1, 3, 4], [1, 0, 2, 3, 4], INVALID]
  total, raw = rewards_of(RewardConfig("auc", "improving"), group, labels)
  np.testing.assert_allclose(total, [0.1, 0.1, 0.1, 1.1, 0.0], atol=1e-6)
  np.testing.assert_allclose(raw, [0.0, 0.0, 0.0, 1.0, 0.0], atol=1e-6)
  # Where upstream has the target first, keeping it there earns everything, and losing it alpha.
  total, _ = rewards_of(RewardConfig("auc", "improving"), [COPY, [0, 4, 3, 2, 1], [1, 0, 2, 3, 4]], [1, 0, 0, 0, 0])
  np.testing.assert_allclose(total, [1.1, 1.1, 0.1], atol=1e-6)


def test_copying_either_order_is_copying():
  # Shown 4 3 2 1 0: a copy of what was shown and a copy of upstream both lose their rank credit under Eq 7.
  labels, shown = [0, 1, 0, 0, 0], [4, 3, 2, 1, 0]
  total, _ = rewards_of(RewardConfig("auc", "eq7"), [shown, COPY, [4, 3, 1, 2, 0]], labels, shown)
  # The third order has negatives 2 and 0 behind the target: AUC 2/4, + 0.1.
  np.testing.assert_allclose(total, [0.1, 0.1, 0.6], atol=1e-6)


def test_eq6_ndcg_graded():
  # Labels 1 2: upstream has gain 1 at rank 0 and 3 at rank 1 (discount 1/log2 3), the best order 3 then 1.
  discount = 1 / np.log2(3)
  upstream = (1 + 3 * discount) / (3 + discount)
  group = [COPY, [1, 0, 2, 3, 4]]
  labels = [1, 2, 0, 0, 0]
  total, raw = rewards_of(RewardConfig("ndcg", "eq7"), group, labels)
  np.testing.assert_allclose(total, [0.1, 1.1], atol=1e-6)
  np.testing.assert_allclose(raw, [upstream, 1.0], atol=1e-6)
  relative, _ = rewards_of(RewardConfig("ndcg", "relative"), group, labels)
  np.testing.assert_allclose(relative, [0.0, 1 - upstream + 0.1], atol=1e-6)


def test_relative_keeps_the_credit_of_an_upstream_order_that_cannot_be_improved():
  # Upstream optimal: kept so earns alpha, spoilt (target one down: AUC 0.75) earns -0.25 and no credit.
  total, _ = rewards_of(RewardConfig("auc", "relative"), [COPY, [0, 2, 1, 4, 3], [1, 0, 2, 3, 4]], [1, 0, 0, 0, 0])
  np.testing.assert_allclose(total, [0.1, 0.1, -0.25], atol=1e-6)


def test_relative_promotion_is_v1():
  rng = np.random.default_rng(0)
  group = rng.permuted(np.tile(np.arange(5), (16, 1)), axis=1).tolist() + [COPY, INVALID]
  for target in range(5):
    labels = np.eye(5, dtype=int)[target].tolist()
    v1, _ = rewards_of(RewardConfig("promotion", "v1", alpha=0.2), group, labels)
    relative, _ = rewards_of(RewardConfig("promotion", "relative", alpha=0.2), group, labels)
    np.testing.assert_allclose(v1, relative, atol=1e-6)


def test_a_reward_can_be_set_and_an_unknown_one_is_refused():
  total, _ = rewards_of(RewardConfig("auc", "relative", alpha=0.5, invalid=-2.0), [[1, 0, 2, 3, 4], INVALID], [0, 1, 0, 0, 0])
  np.testing.assert_allclose(total, [0.75, -2.0], atol=1e-6)
  with pytest.raises(ValueError, match=r"^rank: 'mrr'"):
    RewardConfig("mrr")


def test_advantages_are_those_of_the_shaped_reward():
  # The second group earns nothing that varies: it is dropped, unless all are kept and the shaping speaks.
  rankings, labels = jnp.asarray([[COPY, [2, 0, 1, 3, 4], INVALID]] * 2), jnp.asarray([[0, 0, 1, 0, 0], [0] * 5])
  rankings = rankings.at[1, 2].set(jnp.asarray(COPY))
  shown, shaping = jnp.asarray([COPY] * 2), jnp.asarray([[0.0, -0.5, 0.0], [0.0, -1.0, 0.0]])
  for divide_by in ("std", "mean", "none"):
    for keep_all in (True, False):
      choices = {"divide_by": divide_by, "keep_all": keep_all}
      rewards = compute_rewards(RewardConfig("promotion", "v1"), rankings, labels, shown, shaping=shaping, **choices)
      unshaped = compute_rewards(RewardConfig("promotion", "v1"), rankings, labels, shown)
      np.testing.assert_allclose(rewards.total, unshaped.total + shaping, atol=1e-6)
      expected = group_advantages(rewards.total, rewards.rank_raw, divide_by=divide_by, min_raw_std=0.0 if keep_all else MIN_RAW_STD)
      np.testing.assert_allclose(rewards.advantages, expected[0], atol=1e-6)
      assert rewards.keep.tolist() == expected[1].tolist() == [True, keep_all]
