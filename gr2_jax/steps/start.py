"""Where a trained stage begins: a fresh state, or parameters from elsewhere with a fresh optimizer, on the mesh."""

import dataclasses
import os
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from gr2_jax.models.adapters import Lora, abstract_adapters, frozen_part, init_adapters, merge
from gr2_jax.models.hf_folders import identify, open_folder
from gr2_jax.models.published import fill_rows, read_parameters
from gr2_jax.models.transformer import Model, abstract_boxed, init_boxed
from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.mesh import init_sharded, state_shardings
from gr2_jax.training.state import TrainState, init_state


class Start(Protocol):
  """Where parameters come from: the checkpoints of a stage, or a published model."""

  @property
  def directory(self) -> pathlib.Path:
    """What messages name."""

  def load_params(self, abstract: Any) -> Any:
    """The parameters, each array of the shape, type and sharding that `abstract` gives it."""


@dataclasses.dataclass(frozen=True)
class PublishedStart:
  """A published model in a folder, with rows for the tokens from `first_new` on, drawn by a seed about those of `like` (a `Start`)."""

  directory: pathlib.Path
  first_new: int
  seed: int
  like: tuple[tuple[int, ...], ...] = ()

  def load_params(self, abstract: Any) -> Any:
    """The parameters, read part by part to where they belong."""
    params = read_parameters(open_folder(self.directory), abstract)
    return fill_rows(params, self.first_new, self.like, jax.random.key(self.seed))


def start_fresh(model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with random parameters, its shardings)."""
  return init_sharded(lambda k: init_state(init_boxed(model, k), optimizer), key, mesh)


def start_from(model: Model, optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with these parameters, which lie on the mesh, its shardings)."""
  abstract = jax.eval_shape(lambda k: init_state(init_boxed(model, k), optimizer), jax.random.key(0))
  shardings = state_shardings(abstract, mesh)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
  return TrainState(step=jnp.zeros((), jnp.int32, device=shardings.step), params=params, opt_state=opt_state), shardings


def start_adapted(
  model: Model, optimizer: optax.GradientTransformation, lora: Lora, params: Any, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, Any]:
  """(state with new adapters of parameters that lie on the mesh, its shardings); of `params` the trained ones are copied."""

  def init(key: jax.Array, params: Any) -> TrainState:
    return init_state(init_adapters(model, lora, params, key), optimizer)

  shardings = state_shardings(jax.eval_shape(init, key, params), mesh)
  return jax.jit(lambda *of: nn.unbox(init(*of)), out_shardings=shardings)(key, params), shardings


def describe_adapters(lora: Lora, directory: pathlib.Path, on: Start) -> dict[str, Any]:
  """What checkpoints of adapters in a directory say of themselves (`Checkpointer.about`): their shape, and what they stand `on`: the way to
  other checkpoints, or a published model.
  """
  below: Any = os.path.relpath(on.directory, directory)
  if isinstance(on, PublishedStart):
    below = {"folder": str(on.directory.absolute()), "identity": identify(on.directory), "first_new": on.first_new, "seed": on.seed}
    below["like"] = [list(tokens) for tokens in on.like]
  return {"adapters": {**dataclasses.asdict(lora), "targets": list(lora.targets), "on": below}}


def load_params(model: Model, init: Start, mesh: Mesh) -> Any:
  """The parameters of `init` (of checkpoints: the newest), each array where it belongs on the mesh: of adapters those of all that they
  stand on, merged.

  Raises what its `load_params` raises, and CheckpointError, naming the first of them, for parameters that are not finite, and for adapters
  of a published model that has become another.
  """
  about = init.read_about().get("adapters") if isinstance(init, Checkpointer) else None
  if about is None:
    return _load_finite(init, abstract_boxed(model), mesh)
  lora = Lora(about["rank"], about["alpha"], tuple(about["targets"]), about["rows"])
  adapters = _load_finite(init, abstract_adapters(model, lora), mesh)
  base = load_params(model, _find_base(init.directory, about["on"]), mesh)
  shardings = state_shardings(abstract_boxed(model), mesh)
  return jax.jit(merge, static_argnums=0, donate_argnums=1, out_shardings=shardings)(lora, frozen_part(base), adapters)


def _find_base(directory: pathlib.Path, on: Any) -> Start:
  """What adapters in a directory stand on."""
  if isinstance(on, str):
    return Checkpointer(directory / on)
  folder = pathlib.Path(on["folder"])
  if not folder.is_dir():
    raise CheckpointError(f"{directory}: its adapters stand on the published model in {folder}, which is gone; put it back there")
  if identify(folder) != on["identity"]:
    raise CheckpointError(
      f"{directory}: its adapters stand on the published model that was in {folder}, where another is now; put that back"
    )
  return PublishedStart(folder, on["first_new"], on["seed"], tuple(map(tuple, on["like"])))


def _load_finite(init: Start, boxed: Any, mesh: Mesh) -> Any:
  """Parameters of the shapes and logical axes `boxed`."""
  shardings = state_shardings(boxed, mesh)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)
  params = init.load_params(abstract)
  finite = jax.tree_util.tree_leaves_with_path(jax.device_get(_all_finite(params)))
  broken = [jax.tree_util.keystr(path, simple=True, separator="/") for path, fine in finite if not fine]
  if broken:
    raise CheckpointError(
      f"{init.directory}: the parameter {broken[0]} (and {len(broken) - 1} more) is not finite: the training diverged, or the file "
      "is damaged; remove the stage's folder and run the stage again, with a lower learning rate if its loss became NaN"
    )
  return params


@jax.jit
def _all_finite(params: Any) -> Any:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)
