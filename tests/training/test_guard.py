"""A step that is not finite changes nothing and counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.training.guard import save_arrays, skip_if_not_finite
from gr2_jax.training.metric import Metric

OLD, NEW = {"w": jnp.array([1.0, 2.0]), "count": jnp.int32(3)}, {"w": jnp.array([jnp.nan, 5.0]), "count": jnp.int32(4)}


def _metrics(loss, norm):
  return {"loss": Metric(jnp.float32(loss), 2.0), "grad_norm": Metric(jnp.float32(norm), 1.0), "other": Metric(jnp.inf, 1.0)}


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (-np.inf, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_what_is_not_finite_is_skipped(loss, norm):
  state, metrics = jax.jit(skip_if_not_finite)(OLD, NEW, _metrics(loss, norm))
  jax.tree.map(np.testing.assert_array_equal, state, OLD)
  assert metrics["skipped"] == Metric(1.0, 1.0)
  assert all(metrics[name] == Metric(0.0, 0.0) for name in ("loss", "grad_norm", "other"))


def test_what_is_finite_is_taken_over():
  state, metrics = jax.jit(skip_if_not_finite)(OLD, NEW, _metrics(1.0, 2.0))
  jax.tree.map(np.testing.assert_array_equal, state, NEW)
  assert metrics == _metrics(1.0, 2.0) | {"skipped": Metric(0.0, 1.0)}


def test_a_batch_is_saved_under_the_names_of_its_fields(tmp_path):
  save_arrays(tmp_path / "new" / "batch.npz", {"a": np.arange(3), "b": [jnp.ones((2, 2)), np.float32(np.nan)]})
  saved = np.load(tmp_path / "new" / "batch.npz")
  assert set(saved) == {"a", "b.0", "b.1"}
  np.testing.assert_array_equal(saved["a"], [0, 1, 2])
  assert np.isnan(saved["b.1"])
