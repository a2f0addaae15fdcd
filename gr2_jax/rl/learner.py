"""Reinforcement learning without a run directory, for notebooks and programs of one's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gr2_jax.models.transformer import Decoder, init_boxed
from gr2_jax.rl.draw import SlateStream
from gr2_jax.rl.options import RlOptions
from gr2_jax.rl.step import make_collector, rl_step
from gr2_jax.rollout.generate import Constraint
from gr2_jax.steps.policy import make_policy_update
from gr2_jax.training.loop import StepResult
from gr2_jax.training.mesh import init_sharded, jit_update, make_mesh
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer


class Learner(NamedTuple):
  """The state before the first step, and `step(state) -> StepResult`, which takes the state's buffers over."""

  state: TrainState
  step: Callable[[TrainState], StepResult]


def make_learner(
  decoder: Decoder,
  stream: SlateStream,
  options: RlOptions,
  optimizer: OptimizerConfig,
  *,
  steps: int,
  key: jax.Array,
  params: Any = None,
  constraint: Constraint | None = None,
  mesh: Mesh | None = None,
) -> Learner:
  """A policy that learns from a stream of slates by `options`, over `steps` as the optimizer's schedule counts them.

  `params`: where it begins (None: random parameters by `key`). `constraint`: which tokens may follow, such as `rollout.SlateConstraint`
  (None: free answers under the strict parser). `mesh`: one device unless given. Raises ValueError for a schedule that does not fit.
  """
  mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
  rule = make_optimizer(optimizer, steps * options.update.minibatches)
  state, shardings = init_sharded(lambda k: init_state(init_boxed(decoder, k), rule), key, mesh)
  if params is not None:
    state = state.replace(params=jax.device_put(params, shardings.params))
  update = jit_update(make_policy_update(decoder, rule, options.update, constraint), mesh, shardings)
  loss = options.update.loss
  collector = make_collector(decoder, stream, options.collect, reward=options.reward, loss=loss, constraint=constraint, mesh=mesh, key=key)
  return Learner(state, lambda state: rl_step(state, collector, update))
