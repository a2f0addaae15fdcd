"""Devices and meshes of a topology that is not here: libtpu describes them on any machine."""

import importlib.util
import os

import jax
from jax.sharding import Mesh

from experiments.pods.chips import Topology
from gr2_jax.errors import ConfigError
from gr2_jax.training.mesh import MESH_AXES, make_mesh

# No metadata server is there to ask what this machine is (it is none, whatever is told), and others may compile at the same time.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def list_devices(topology: Topology) -> list[jax.Device]:
  """As `jax.devices()` would give them there. Raises ConfigError where libtpu is missing."""
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError("libtpu, which compiles for TPUs, is missing; install it with: pip install 'gr2_jax[aot]' (Linux on x86 alone)")
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  hosts = {"chips_per_host_bounds": [1] * 3} if topology.chips == 1 else {}
  layout = topology.chip.layout
  told = {"chip_config_name": layout} if layout != "default" else {}
  return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **told, **hosts).devices)


def parse_mesh(text: str) -> dict[str, int]:
  """`data,fsdp,tensor` as sizes by axis; one may be -1. Raises ConfigError for anything else."""
  try:
    sizes = [int(part) for part in text.split(",")]
  except ValueError:
    sizes = []
  if len(sizes) != len(MESH_AXES) or any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise ConfigError(
      f"--mesh: {text!r} is not three sizes; write data,fsdp,tensor, for example 16,4,1, one of which may be -1 (what is left)"
    )
  return dict(zip(MESH_AXES, sizes, strict=True))


def arrange(sizes: dict[str, int], topology: Topology, devices: list[jax.Device]) -> Mesh:
  """The mesh of a topology. Raises ConfigError where it is not the topology's size."""
  try:
    return make_mesh(**sizes, devices=devices)
  except ValueError:
    shape = " x ".join(f"{name} {size}" for name, size in sizes.items())
    a_chip = f", {topology.chip.devices} a chip" if topology.chip.devices > 1 else ""
    raise ConfigError(
      f"--mesh: {shape} is not the size of {topology.name}, which has {topology.devices} devices{a_chip}; "
      f"give sizes whose product is {topology.devices}, for example {topology.devices},1,1, or -1 for one of them"
    ) from None
