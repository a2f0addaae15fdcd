"""One gradient step, whatever the loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.adapters import ROWS, Join
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState

# loss(params, batch, *frozen) -> (loss, metrics), with a metric `loss` among them.
Loss = Callable[..., tuple[jax.Array, dict[str, Metric]]]
Update = Callable[..., tuple[TrainState, dict[str, Metric]]]


def make_update(
  optimizer: optax.GradientTransformation,
  loss_fn: Loss,
  *,
  microbatches: int = 1,
  whole_batch: Callable[[jax.Array, Any], Mapping[str, jax.Array]] | None = None,
  join: Join | None = None,
) -> Update:
  """Build `update(state, batch, *frozen) -> (state, metrics)`: a step down the gradient of `loss_fn(params, batch, *frozen)`.

  `frozen`: pytrees that get no gradient, such as a teacher's parameters. `microbatches` cut the batch along its first axis to save memory;
  their gradients are added. What a part must know of all parts, such as the loss's denominator, comes from
  `whole_batch(step, batch)`, whose arrays go to `loss_fn` by name. A step whose loss or gradient is not finite changes nothing.
  With `join` the state's parameters are adapters alone, and the first of `frozen` is their base.

  Metrics: those of the loss, `grad_norm`, `skipped`. Compile it by `training.mesh.jit_update`, which donates the state and shards it.
  """
  gradient = jax.grad(loss_fn if join is None else _of_adapters(loss_fn, join), has_aux=True)

  def update(state: TrainState, batch: Any, *frozen: Any) -> tuple[TrainState, dict[str, Metric]]:
    shared = {} if whole_batch is None else whole_batch(state.step, batch)

    def add_part(grads: Any, part: Any) -> tuple[Any, dict[str, Metric]]:
      own, metrics = gradient(state.params, part, *frozen, **shared)
      return jax.tree.map(jnp.add, grads, own), metrics

    if microbatches == 1:
      grads, metrics = gradient(state.params, batch, *frozen, **shared)
    else:
      grads, metrics = over_parts(add_part, jax.tree.map(jnp.zeros_like, state.params), batch, microbatches)
    metrics = metrics | {"grad_norm": Metric(optax.global_norm(grads), jnp.ones(()))}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = optax.apply_updates(state.params, updates), opt_state
    (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), new, metrics)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update


def _of_adapters(loss_fn: Loss, join: Join) -> Loss:
  """`loss(adapters, batch, base, *frozen)` of `loss(params, batch, *frozen)`."""
  return lambda adapters, batch, base, *frozen, **shared: loss_fn(join(base, adapters), batch, *frozen, **shared)


def over_parts(
  step: Callable[[Any, Any], tuple[Any, dict[str, Metric]]], carry: Any, data: Any, parts: int
) -> tuple[Any, dict[str, Metric]]:
  """`carry, metrics = step(carry, part)` over the parts of the data one after the other, with the metrics added up.

  Raises ValueError where the data's first axis does not divide.
  """
  if parts == 1:
    return step(carry, data)
  carry, metrics = jax.lax.scan(step, carry, split_parts(data, parts))
  return carry, jax.tree.map(lambda x: x.sum(axis=0), metrics)


def split_parts(tree: Any, parts: int) -> Any:
  """Leading axis `[P, ...]` to `[parts, P / parts, ...]`, by strides: where P lies over devices each keeps its own prompts."""

  def cut(x: jax.Array) -> jax.Array:
    if len(x) % parts:
      raise ValueError(f"{len(x)} prompts do not divide into {parts} parts (minibatches x microbatches)")
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(cut, tree)


def join_parts(x: jax.Array) -> jax.Array:
  """The inverse of `split_parts`."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def only_rows(optimizer: optax.GradientTransformation, first: int) -> optax.GradientTransformation:
  """The same optimizer, whose updates are 0 but in the rows from `first` on of the token tables (input, and output where untied), and of
  adapters but in the rows that they hold of them.

  The token warm-up stage, in which the backbone must not follow rows that are still noise (OneRec-Think, arXiv 2510.11639).
  """

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, state = optimizer.update(grads, state, params)
    tables = {name: updates[name] for name in ("embedding", "output") if name in updates}
    kept = {name: jnp.where((jnp.arange(rows.shape[0]) >= first)[:, None], rows, 0) for name, rows in tables.items()}
    kept |= {name: updates[name] for name in ROWS if name in updates}
    return jax.tree.map(jnp.zeros_like, updates) | kept, state

  return optax.GradientTransformation(optimizer.init, update)
