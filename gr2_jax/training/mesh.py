"""Devices as a mesh `data, fsdp, tensor`, and the one table that maps logical axes of arrays onto it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr2_jax.settings import check_settings, setting

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Parameters are cut along `embed` over fsdp and along heads, mlp and vocabulary over tensor;
# activations along the batch over data and fsdp.
LOGICAL_RULES = (
  ("batch", ("data", "fsdp")),
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("layers", None),
  ("head_dim", None),
  ("seq", None),
)


@dataclasses.dataclass(frozen=True)
class MeshOptions:
  """How devices are arranged; one axis may be -1 and takes the devices that are left. Raises ValueError."""

  data: int = setting(
    -1,
    "copies of the model, each with its share of every batch; one of the three axes may be -1: all devices that are left",
    unit="devices",
    low=-1,
  )
  fsdp: int = setting(
    1, "parts into which parameters are cut along the model's width, each also with its share of every batch", unit="devices", low=-1
  )
  tensor: int = setting(1, "parts into which heads, feed-forward layers and vocabulary are cut", unit="devices", low=-1)

  def __post_init__(self) -> None:
    check_settings(self)
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size == 0:
        raise ValueError(f"{name}: 0 must be at least 1, or -1: the devices that are left")
    if (free := [name for name, size in sizes.items() if size == -1])[1:]:
      raise ValueError(f"{free[1]}: only one of {' and '.join(free)} can be -1, the devices that are left")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh of the given axis sizes; one of them may be -1 and takes the devices that are left.

  Raises ValueError when the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  if sizes.count(-1) == 1:
    known = int(np.prod([s for s in sizes if s != -1]))
    sizes[sizes.index(-1)] = max(len(devices) // known, 1)
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(f"mesh {dict(zip(MESH_AXES, (data, fsdp, tensor), strict=True))} does not fit {len(devices)} devices")
  return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def to_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
  """The mesh axes of an array with these logical axes."""
  rules = dict(LOGICAL_RULES)
  return PartitionSpec(*(None if axis is None else rules[axis] for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins an activation to its logical axes; does nothing outside a mesh."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, to_spec(axes))


def batch_parts() -> int:
  """How many parts the batch axis is cut into on the mesh that is set; 1 outside a mesh."""
  shape = jax.sharding.get_abstract_mesh().shape
  return shape.get("data", 1) * shape.get("fsdp", 1)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over data and fsdp."""
  return NamedSharding(mesh, to_spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
  """Shardings of a state whose parameters still carry their logical axes (`nn.LogicallyPartitioned` boxes)."""
  return nn.logical_to_mesh_sharding(nn.get_partition_spec(abstract_state), mesh, LOGICAL_RULES)


def init_sharded(init: Callable[[jax.Array], Any], key: jax.Array, mesh: Mesh) -> tuple[Any, Any]:
  """Runs `init(key)` so that every array is born where it belongs; returns the unboxed state and its shardings."""
  shardings = state_shardings(jax.eval_shape(init, key), mesh)
  state = jax.jit(lambda k: nn.unbox(init(k)), out_shardings=shardings)(key)
  return state, shardings


def jit_update(update: Callable, mesh: Mesh, shardings: Any, frozen: tuple[Any, ...] = ()) -> Callable:
  """Compiles `update(state, batch, *frozen) -> (state, metrics)` to a function of state and batch: state donated, batch cut along its
  first axis, metrics replicated. `frozen`: pytrees of arrays that no step changes, such as a teacher's parameters, each left where it lies.
  """
  compiled = jax.jit(
    update,
    in_shardings=(shardings, batch_sharding(mesh), *jax.tree.map(lambda x: x.sharding, frozen)),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )

  @functools.wraps(update)
  def run(state: Any, batch: Any) -> Any:
    with jax.set_mesh(mesh):
      return compiled(state, to_global(batch, mesh), *frozen)

  return run


def to_global(batch: Any, mesh: Mesh) -> Any:
  """This process's rows as global arrays; every process holds an equal share of the first axis.

  Raises ValueError for rows that do not divide over the mesh.
  """
  sharding = batch_sharding(mesh)
  parts = mesh.shape["data"] * mesh.shape["fsdp"]

  def place(x: Any) -> jax.Array:
    rows = len(x) if isinstance(x, jax.Array) else len(x) * jax.process_count()
    if rows % parts:
      raise ValueError(f"batch: {rows} rows do not divide over the {parts} parts of the mesh (data x fsdp)")
    if isinstance(x, jax.Array):
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(place, batch)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
  """Arrays that every process has alike, whole on every device: what a compiled step takes as `frozen`."""
  return jax.device_put(tree, replicated(mesh))


def to_local(tree: Any, mesh: Mesh) -> Any:
  """This process's rows of global arrays, as numpy arrays: the inverse of `to_global`, for what was computed from its arrays."""

  def fetch(x: jax.Array) -> np.ndarray:
    shards = jax.device_put(x, batch_sharding(mesh)).addressable_shards
    parts = {shard.index[0].start or 0: shard.data for shard in shards}  # each lies on all devices along `tensor`
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(fetch, tree)
