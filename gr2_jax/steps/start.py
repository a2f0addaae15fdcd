"""Where a trained stage begins: a fresh state, or another stage's parameters with a fresh optimizer, on the mesh."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from gr2_jax.models.adapters import Lora, abstract_adapters, frozen_part, init_adapters, merge
from gr2_jax.models.transformer import Model, abstract_boxed, init_boxed
from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.mesh import init_sharded, state_shardings
from gr2_jax.training.state import TrainState, init_state

# start() gives a decoder's parameters, on the mesh, to whoever calls it: arrays that nobody else reads.
Start = Callable[[], Any]


def start_fresh(model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with random parameters, its shardings)."""
  return init_sharded(lambda k: init_state(init_boxed(model, k), optimizer), key, mesh)


def start_from(model: Model, optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with these parameters, which lie on the mesh, its shardings)."""
  abstract = jax.eval_shape(lambda k: init_state(init_boxed(model, k), optimizer), jax.random.key(0))
  shardings = state_shardings(abstract, mesh)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
  return TrainState(step=jnp.zeros((), jnp.int32, device=shardings.step), params=params, opt_state=opt_state), shardings


def complete_start(model: Model, start: Start, key: jax.Array, mesh: Mesh) -> Any:
  """A model's parameters where the decoder's are given, on the mesh; what else there is of it is random."""

  def draw(key: jax.Array) -> Any:
    return {name: leaf for name, leaf in init_boxed(model, key).items() if name != "decoder"}

  if "decoder" not in abstract_boxed(model):
    return start()
  return {**init_sharded(draw, key, mesh)[0], "decoder": start()}


def start_adapted(
  model: Model, optimizer: optax.GradientTransformation, lora: Lora, params: Any, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, Any]:
  """(state with new adapters of parameters that lie on the mesh, its shardings); of `params` the trained ones are copied."""

  def init(key: jax.Array, params: Any) -> TrainState:
    return init_state(init_adapters(model, lora, params, key), optimizer)

  shardings = state_shardings(jax.eval_shape(init, key, params), mesh)
  return jax.jit(lambda *of: nn.unbox(init(*of)), out_shardings=shardings)(key, params), shardings


def describe_adapters(lora: Lora, directory: pathlib.Path, on: pathlib.Path | None) -> dict[str, Any]:
  """What checkpoints of adapters in a directory say of themselves (`Checkpointer.about`): their shape, and the checkpoints that they stand
  `on`, by the way there; None: on what the run starts from.
  """
  below = None if on is None else os.path.relpath(on, directory)
  return {"adapters": {**dataclasses.asdict(lora), "targets": list(lora.targets), "on": below}}


def load_params(model: Model, checkpoints: Checkpointer, mesh: Mesh, start: Start | None = None) -> Any:
  """The newest checkpoint's parameters, each array where it belongs on the mesh: of adapters those of all that they stand on, merged.

  `start`: what the run starts from, where that is no random numbers. Raises what `Checkpointer.load_params` raises, and CheckpointError,
  naming the first of them, for parameters that are not finite.
  """
  about = checkpoints.read_about().get("adapters")
  if about is None:
    return _load_finite(checkpoints, abstract_boxed(model), mesh)
  lora, below = Lora(about["rank"], about["alpha"], tuple(about["targets"]), about["rows"]), about["on"]
  adapters = _load_finite(checkpoints, abstract_adapters(model, lora), mesh)
  if below is not None:
    base = load_params(model, Checkpointer(checkpoints.directory / below), mesh, start)
  elif start is not None:
    base = start()
    base = {"decoder": base} if "decoder" in adapters else base
  else:
    raise CheckpointError(
      f"{checkpoints.directory}: holds adapters of the model that the run started from, and the config names none; use the run's own config"
    )
  shardings = state_shardings(abstract_boxed(model), mesh)
  return jax.jit(merge, static_argnums=0, donate_argnums=1, out_shardings=shardings)(lora, frozen_part(base), adapters)


def _load_finite(checkpoints: Checkpointer, boxed: Any, mesh: Mesh) -> Any:
  """Parameters of the shapes and logical axes `boxed`."""
  shardings = state_shardings(boxed, mesh)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)
  params = checkpoints.load_params(abstract)
  finite = jax.tree_util.tree_leaves_with_path(jax.device_get(_all_finite(params)))
  broken = [jax.tree_util.keystr(path, simple=True, separator="/") for path, fine in finite if not fine]
  if broken:
    raise CheckpointError(
      f"{checkpoints.directory}: the parameter {broken[0]} (and {len(broken) - 1} more) is not finite: the training diverged, or the file "
      "is damaged; remove the stage's folder and run the stage again, with a lower learning rate if its loss became NaN"
    )
  return params


@jax.jit
def _all_finite(params: Any) -> Any:
  return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)
