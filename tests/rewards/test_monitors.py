"""Hacking monitors of a hand-made batch."""

import jax.numpy as jnp
import numpy as np

from gr2_jax.language.answers import VERDICTS
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards


def test_hand_made_batch():
  # Two prompts, two answers each, three candidates. Prompt 0 is shown 0 1 2: a copy, and a full reversal.
  # Prompt 1 is shown 2 0 1: one swap of the shown order (0 2 1), and an invalid answer.
  rankings = jnp.asarray([[[0, 1, 2], [2, 1, 0]], [[0, 2, 1], [-1, -1, -1]]])
  shown = jnp.asarray([[0, 1, 2], [2, 0, 1]])
  labels = jnp.asarray([[0, 0, 1], [1, 0, 0]])
  rewards = compute_rewards(RewardConfig("promotion", "v1"), rankings, labels, shown)
  metrics = monitor_answers(rewards, rankings, shown, jnp.asarray([[3, 5], [4, 8]]))
  mean = {name: float(m.mean()) for name, m in metrics.items()}
  assert mean["valid_rate"] == 0.75
  # Of three valid answers one copies; the reversal of three is one swap of the ends, and 0 2 1 one swap: all are near.
  np.testing.assert_allclose(mean["identity_rate"], 1 / 3, rtol=1e-6)
  assert mean["near_identity_rate"] == 1.0
  # Tau to shown: 1, -1, and 1 - 2*1/3 for one turned pair of three: mean 1/9.
  np.testing.assert_allclose(mean["kendall_tau_to_shown"], 1 / 9, rtol=1e-6)
  # Tau to upstream 0 1 2: 1, -1, and 0 2 1 turns one pair: 1/3.
  np.testing.assert_allclose(mean["kendall_tau_to_upstream"], 1 / 9, rtol=1e-6)
  # First choices: candidate 0 at slot 0; candidate 2 at slot 2; candidate 0, which prompt 1 shows at slot 1.
  np.testing.assert_allclose([mean[f"top1_share/slot_{s}"] for s in range(3)], [1 / 3] * 3, rtol=1e-6)
  assert mean["completion_length"] == 5
  # Hits at rank 1: the reversal finds prompt 0's target 2, the swap prompt 1's target 0; over all four answers.
  assert mean["recall@1"] == 0.5


def test_nothing_valid_gives_no_nan():
  rankings, shown = jnp.full((1, 2, 3), -1), jnp.asarray([[0, 1, -1]])
  rewards = compute_rewards(RewardConfig(), rankings, jnp.asarray([[1, 0, 0]]), shown)
  metrics = monitor_answers(rewards, rankings, shown, jnp.ones((1, 2)))
  assert all(np.isfinite(m.sum) for m in metrics.values())
  assert metrics["top1_share/slot_2"].sum == 0 and metrics["identity_rate"].count == 0


def test_error_kinds():
  codes = [VERDICTS.index(error) for error in (None, "missing", "missing", "overlong")]
  shares = {name: float(metric.mean()) for name, metric in monitor_errors(jnp.asarray([codes])).items()}
  assert shares == {"error/wrong_format": 0, "error/missing": 0.5, "error/repeated": 0, "error/unknown_item": 0, "error/overlong": 0.25}
