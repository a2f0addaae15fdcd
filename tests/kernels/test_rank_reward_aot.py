"""The ranking-reward kernel compiled for every TPU generation, on a machine without one."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr2_jax.kernels.rank_reward import api
from gr2_jax.kernels.rank_reward.api import RankRewardOptions

pytestmark = pytest.mark.aot


@pytest.fixture(scope="module")
def topologies():
  pytest.importorskip("libtpu", reason="libtpu is missing: pip install 'gr2_jax[aot]'")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # test processes side by side
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask on a machine without a TPU
  from jax.experimental import topologies

  return topologies


@pytest.mark.parametrize("shape", [(1024, 8, 10), (64, 16, 128), (256, 1, 1024), (64, 16, 1024), (3, 6, 1)], ids=str)
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_compiles_for_a_tpu(topologies, topology, shape):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
  prompts, group, size = shape
  # Three prompts don't divide over the devices: they arrive whole, and the dispatch pads them.
  sharding = NamedSharding(mesh, PartitionSpec("data" if prompts % len(devices) == 0 else None))

  def array(*extents, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(extents, dtype, sharding=sharding)

  slate = [array(prompts, size, dtype=jnp.float32), array(prompts, size), array(prompts, size), array(prompts, size, dtype=bool)]
  with jax.set_mesh(mesh):
    args = (array(prompts, group, size), *slate, array(prompts, group, dtype=jnp.float32))
    compiled = api.group_rank_terms.lower(*args, options=RankRewardOptions()).compile()
  assert "tpu_custom_call" in compiled.as_text()
  # A device's 32 to 64 lists of 1,024 would take 128 MiB and more as pairs of candidates; what is held are padded copies of the lists.
  assert compiled.memory_analysis().temp_size_in_bytes < 32 << 20
