"""Each part of the compressor's reward against numbers worked out by hand."""

import numpy as np
import pytest

from gr2_jax.compression.reward import alpha_at, compression_reward, compression_terms, ellipsis_factor, judge_reward


@pytest.mark.parametrize(
  ("compressed", "original", "expected"), [(20, 100, 0.8), (0, 100, 1.0), (100, 100, 0.0), (130, 100, 0.0), (0, 0, 0.0)]
)
def test_length(compressed, original, expected):
  assert compression_reward(compressed, original) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("solvable", "preservation", "quality", "expected"),
  # 0.2 * 0.5 + 0.8 * 0.9; 0.8 * 0.5 + 0.2 * 0.9; the ends of the scale
  [(True, 0.5, 0.9, 0.82), (False, 0.5, 0.9, 0.58), (True, 1, 1, 1.0), (False, 1, 1, 1.0), (True, 1, 0, 0.2), (False, 1, 0, 0.8)],
)
def test_judge(solvable, preservation, quality, expected):
  assert judge_reward(solvable, preservation, quality) == pytest.approx(expected)


def test_ellipses_halve_the_reward_down_to_a_floor():
  np.testing.assert_allclose(ellipsis_factor(np.arange(6)), [1, 0.5, 0.25, 0.125, 0.1, 0.1])


def test_total():
  shared = {"original": [100, 100, 100], "solvable": [True, False, True], "preservation": [0.5] * 3, "quality": [0.9] * 3}
  terms = compression_terms(compressed=[20, 50, 20], ellipses=[0, 1, 0], valid=np.array([True, True, False]), alpha=0.3, **shared)
  # (0.3 * 0.8 + 0.7 * 0.82) * 1; (0.3 * 0.5 + 0.7 * 0.58) * 0.5; 0 for a semantic ID that was not copied
  np.testing.assert_allclose(terms.total, [0.814, 0.278, 0.0])
  np.testing.assert_allclose(terms.shorter, [0.8, 0.5, 0.8])


def test_alpha_rises_linearly_and_stays():
  assert [alpha_at(step, 5, (0.3, 0.5)) for step in (0, 2, 4, 9)] == pytest.approx([0.3, 0.4, 0.5, 0.5])
  assert alpha_at(0, 1, (0.3, 0.5)) == 0.3
