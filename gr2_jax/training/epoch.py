"""An epoch of a small model in one program: data that fit a device, in a fresh order, one gradient step after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

LossFn = Callable[[Any, jax.Array, jax.Array], jax.Array]


def scan_epoch(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  params: Any,
  opt_state: optax.OptState,
  *,
  count: int,
  batch: int,
  order_key: jax.Array,
  step_key: jax.Array,
) -> tuple[Any, optax.OptState, jax.Array]:
  """A pass over `count` examples, `batch` at a time (a last part batch waits for another order); the mean loss last. To be called in a jit.

  `loss_fn(params, chosen [batch], key) -> loss` of the examples at these places; each step has a key of its own.
  """
  steps = count // batch
  order = jax.random.permutation(order_key, count)[: steps * batch].reshape(steps, batch)

  def step(carry: tuple[Any, optax.OptState], scanned: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, optax.OptState], jax.Array]:
    params, opt_state = carry
    chosen, number = scanned
    loss, grads = jax.value_and_grad(loss_fn)(params, chosen, jax.random.fold_in(step_key, number))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), (order, jnp.arange(steps)))
  return params, opt_state, losses.mean()
