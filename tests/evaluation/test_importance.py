"""A fact matters as much as the order loses when its values are dealt anew."""

import numpy as np
import pytest

from gr2_jax.evaluation.importance import permutation_importance


def test_the_fact_that_orders_comes_first_and_one_that_nobody_reads_loses_nothing():
  rng = np.random.default_rng(0)
  labels = np.zeros((80, 4), np.int32)
  labels[np.arange(80), rng.integers(4, size=80)] = 1
  labels[:20, 3] = -1
  labels[:20, 0] = np.where(labels[:20].max(axis=1) > 0, labels[:20, 0], 1)
  facts = rng.normal(size=(80, 4, 3)).astype(np.float32)
  facts[..., 1] = labels + 0.1 * facts[..., 1]
  given = facts.copy()
  options = {"clusters": [str(i) for i in range(80)], "weights": np.ones(80), "seed": 1, "resamples": 200}
  found = permutation_importance(lambda x: x[..., 1] + 0.01 * x[..., 2], facts, ("unread", "truth", "noise"), labels, **options)
  assert next(iter(found)) == "truth" and found["unread"] == {"delta": 0.0, "ci95": [0.0, 0.0]}
  low, high = found["truth"]["ci95"]
  assert 0.2 < low < found["truth"]["delta"] < high
  assert found["noise"]["delta"] == pytest.approx(0, abs=0.02)
  np.testing.assert_array_equal(facts, given)
