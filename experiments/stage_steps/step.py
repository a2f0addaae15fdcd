"""A jitted step of a stage with the shapes of its arguments: what can be lowered and compiled for any mesh while no array exists."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from gr2_jax.models.adapters import Lora, abstract_adapters, frozen_part
from gr2_jax.models.transformer import Model, abstract_boxed, init_boxed
from gr2_jax.training.mesh import batch_sharding, replicated, state_shardings
from gr2_jax.training.state import init_state


class Argument(NamedTuple):
  """The `shapes` of an argument, a pytree of `jax.ShapeDtypeStruct`, and how it lies on a mesh.

  `model`: parameters, or a state of them, which still carry their logical axes; `batch`: cut along the first axis; `whole`: on each device.
  """

  place: Literal["model", "batch", "whole"]
  shapes: Any

  @property
  def arrays(self) -> Any:
    """The shapes as the step reads them."""
    return nn.unbox(self.shapes)

  def on(self, mesh: Mesh) -> Any:
    """Shardings of the arrays, each of all that lies below it."""
    if self.place == "model":
      return state_shardings(self.shapes, mesh)
    return batch_sharding(mesh) if self.place == "batch" else replicated(mesh)

  def bytes_on(self, mesh: Mesh) -> float:
    """What a device of a mesh holds of it."""
    return sum(jax.tree.leaves(jax.tree.map(_bytes_here, self.on(mesh), self.arrays)))


def _bytes_here(sharding: Any, shapes: Any) -> float:
  """Of arrays that lie alike, on a device; none where an optimizer has left a parameter out."""
  return float(sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes)))


@dataclasses.dataclass(frozen=True, eq=False)
class StageStep:
  """A compiled program of a `stage`, called `calls` times in a run.

  `function(*arguments)`; one that `trains` takes a state first, over which it writes, and returns the new one with metrics. `positions`:
  what the model reads in a call, tokens or packed items, and `examples`: how many the host draws and packs for it. `trips`: how often
  loops run whose end is not known ahead, at most, from the outermost inwards. `trainings`: between how many the calls are shared out
  alike, each of which saves its state after every `save_every` calls and, where held-out data choose a step, asks them after every
  `look_every`; 0: never.
  """

  stage: str
  name: str
  function: Callable[..., Any]
  arguments: tuple[Argument, ...]
  calls: int
  trains: bool = False
  positions: int = 0
  examples: int = 0
  trips: tuple[float, ...] = ()
  trainings: int = 1
  save_every: int = 0
  look_every: int = 0

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """The step as the stage compiles it on a mesh."""
    shardings = tuple(argument.on(mesh) for argument in self.arguments)
    options: dict[str, Any] = {"in_shardings": shardings}
    if self.trains:
      options |= {"out_shardings": (shardings[0], replicated(mesh)), "donate_argnums": 0}
    with jax.set_mesh(mesh):
      return jax.jit(self.function, **options).lower(*(argument.arrays for argument in self.arguments))


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """An array's shape, float32 unless told."""
  return jax.ShapeDtypeStruct(sizes, dtype)


def integers(*sizes: int) -> jax.ShapeDtypeStruct:
  """The shape of an int32 array."""
  return shape(*sizes, dtype=jnp.int32)


def flags(*sizes: int) -> jax.ShapeDtypeStruct:
  """The shape of a bool array."""
  return shape(*sizes, dtype=jnp.bool_)


def random_key() -> Argument:
  """A key."""
  return Argument("whole", jax.eval_shape(jax.random.key, 0))


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> Argument:
  """The state of a training."""
  return Argument("model", jax.eval_shape(lambda key: init_state(init_boxed(model, key), optimizer), jax.random.key(0)))


def abstract_training(
  model: Model, optimizer: optax.GradientTransformation, lora: Lora | None, batch: Argument, *frozen: Argument
) -> tuple[Argument, ...]:
  """The arguments of an update: the state, of all parameters or of adapters (`lora`), the batch, the adapters' base, what is `frozen`."""
  if lora is None:
    return (abstract_state(model, optimizer), batch, *frozen)
  state = jax.eval_shape(lambda adapters: init_state(adapters, optimizer), abstract_adapters(model, lora))
  return (Argument("model", state), batch, Argument("model", frozen_part(abstract_boxed(model))), *frozen)


def abstract_params(model: Model) -> Argument:
  """The parameters of a model."""
  return Argument("model", abstract_boxed(model))


def count_looks(steps: int, every: int) -> int:
  """How often held-out data choose a step, see `training.best.BestKeeper`."""
  return steps // every + 1 + (steps % every > 0)
