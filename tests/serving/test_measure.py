"""How good a point of the latency plot is: one slate has no interval."""

import numpy as np

from gr2_jax.serving.measure import _quality


def test_one_slate_has_no_interval():
  assert _quality(np.array([[1, 0]]), np.array([[0, 1]])) == {"recall@1": 1.0, "ci95": None, "n": 1}
  found = _quality(np.array([[1, 0], [0, 1]]), np.array([[0, 1], [0, 1]]))
  assert found["recall@1"] == 0.5 and found["ci95"] == [0.0, 1.0]
