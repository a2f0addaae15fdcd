"""Where a trained stage begins: a fresh state, or another stage's parameters with a fresh optimizer, on the mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from gr2_jax.models.adapters import Lora, init_adapters
from gr2_jax.models.transformer import Model, abstract_boxed, init_boxed
from gr2_jax.training.checkpoints import Checkpointer, CheckpointError
from gr2_jax.training.mesh import init_sharded, state_shardings
from gr2_jax.training.state import TrainState, init_state


def start_fresh(model: Model, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with random parameters, its shardings)."""
  return init_sharded(lambda k: init_state(init_boxed(model, k), optimizer), key, mesh)


def start_adapted(
  model: Model, optimizer: optax.GradientTransformation, lora: Lora, base: Any, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, Any]:
  """(state whose parameters are new adapters of `base`, its shardings); `base` lies on the mesh and stays as it is."""

  def init(key: jax.Array, base: Any) -> TrainState:
    return init_state(init_adapters(model, lora, base, key), optimizer)

  shardings = state_shardings(jax.eval_shape(init, key, base), mesh)
  return jax.jit(lambda *of: nn.unbox(init(*of)), out_shardings=shardings)(key, base), shardings


def start_from(model: Model, optimizer: optax.GradientTransformation, checkpoints: Checkpointer, mesh: Mesh) -> tuple[TrainState, Any]:
  """(state with the newest checkpoint's parameters, its shardings); raises what `Checkpointer.load_params` raises."""
  abstract = jax.eval_shape(lambda k: init_state(init_boxed(model, k), optimizer), jax.random.key(0))
  shardings = state_shardings(abstract, mesh)
  params = load_params(model, checkpoints, mesh)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
  return TrainState(step=jnp.zeros((), jnp.int32, device=shardings.step), params=params, opt_state=opt_state), shardings


def load_params(model: Model, checkpoints: Checkpointer, mesh: Mesh) -> Any:
  """The newest checkpoint's parameters, each array where it belongs on the mesh.

  Raises what `Checkpointer.load_params` raises, and CheckpointError, naming the first of them, for parameters that are not finite.
  """
  boxed = abstract_boxed(model)
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
