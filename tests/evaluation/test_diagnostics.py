"""Diagnostics of hand-made answers."""

import numpy as np
import pytest

from gr2_jax.evaluation.diagnostics import compute_diagnostics, permutation_consistency

LABELS = np.array([[0, 0, 1, 0]] * 4)


def test_hand_made_answers():
  rankings = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [3, 2, 0, 1], [-1] * 4])
  shown = np.array([[1, 0, 2, 3], [3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3]])
  of = compute_diagnostics(rankings, LABELS, shown, [None, None, None, "missing"])
  assert of["valid_rate"] == 0.75
  # The first copies upstream though shown otherwise, the second copies what it was shown, the third is a swap away from that.
  np.testing.assert_allclose(of["identity_rate"], 2 / 3)
  np.testing.assert_allclose(of["identity_to_shown_rate"], 1 / 3)
  np.testing.assert_allclose(of["identity_to_upstream_rate"], 1 / 3)
  assert of["near_identity_rate"] == 1.0
  # To shown one pair of six turned, none, one: (2/3 + 1 + 2/3) / 3. To upstream 1, -1, and 5 of 6 turned: -2/3.
  np.testing.assert_allclose(of["kendall_tau_to_shown"], 7 / 9)
  np.testing.assert_allclose(of["kendall_tau_to_upstream"], -2 / 9)
  # First choices 0, 3, 3 were shown at slots 1, 0, 0.
  np.testing.assert_allclose(of["top1_share_by_slot"], [2 / 3, 1 / 3, 0, 0])
  assert of["errors"]["missing"] == 0.25 and of["errors"]["overlong"] == 0


def test_slates_count_by_their_weights():
  rankings = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [-1] * 4])
  of = compute_diagnostics(rankings, LABELS[:3], errors=[None, "not_finite", "missing"], weights=np.array([3.0, 1.0, 4.0]))
  assert of["errors"]["not_finite"] == 0.125 and of["valid_rate"] == of["errors"]["missing"] == 0.5 and of["identity_rate"] == 0.75
  assert of["kendall_tau_to_upstream"] == 0.5 and of["top1_share_by_slot"] == [0.75, 0, 0, 0.25]
  assert permutation_consistency(rankings, np.tile(np.arange(4), (3, 1)), LABELS[:3], np.array([3.0, 1.0, 4.0])) == 0.5


def test_nothing_valid_is_none_not_nan():
  of = compute_diagnostics(np.full((2, 3), -1), np.zeros((2, 3), int))
  assert of["valid_rate"] == 0 and of["identity_rate"] is None and of["top1_share_by_slot"] is None


def test_consistency_over_presentations():
  first = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [-1] * 4, [1, 0, 2, 3]])
  second = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3], [-1] * 4])
  # Two slates have two valid answers: tau 1 and -1.
  np.testing.assert_allclose(permutation_consistency(first, second, LABELS), 0.0, atol=1e-7)
  assert permutation_consistency(first[2:], second[2:], LABELS[2:]) is None


def test_a_position_only_policy_is_seen():
  rng = np.random.default_rng(0)
  n, k = 200, 6
  labels = np.zeros((n, k), int)
  one, two = (rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1) for _ in range(2))
  habit = np.array([2, 0, 1, 5, 4, 3])  # always the third slot first, whatever stands there
  of = compute_diagnostics(one[:, habit], labels, one)
  assert of["identity_rate"] < 0.02 and of["top1_share_by_slot"][2] == 1.0
  assert abs(permutation_consistency(one[:, habit], two[:, habit], labels)) < 0.1
  assert permutation_consistency(one, one, labels) == pytest.approx(1.0)
