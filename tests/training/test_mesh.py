"""Rows go onto the mesh and come back as they were."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gr2_jax.training.mesh import make_mesh, to_global, to_local


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_to_local_is_the_inverse_of_to_global(shape):
  mesh, rows = make_mesh(*shape), {"a": np.arange(24).reshape(8, 3), "b": np.arange(8) > 3}
  jax.tree.map(np.testing.assert_array_equal, to_local(to_global(rows, mesh), mesh), rows)
  # Whatever way the compiler laid a result out.
  whole = jax.device_put(rows, NamedSharding(mesh, PartitionSpec()))
  jax.tree.map(np.testing.assert_array_equal, to_local(whole, mesh), rows)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="batch: 6 rows do not divide over the 4 parts of the mesh"):
    to_global(np.zeros((6, 2)), make_mesh(2, 2, 2))
