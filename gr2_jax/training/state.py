"""What an update step carries from step to step, and its optimizer."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """`step` int32 scalar, `params` and `opt_state` pytrees; keys are folded from `step`, so none are carried."""

  step: jax.Array
  params: Any
  opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with clipping by global norm. `warmup_steps` rise linearly from 0; the schedule spans what is left of the steps."""

  learning_rate: float
  schedule: Literal["constant", "cosine", "linear"] = "constant"
  warmup_steps: int = 0
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.95


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Learning rate by step; cosine and linear end at 0 after `total_steps`. Raises ValueError for settings that cannot hold."""
  if config.warmup_steps > total_steps:
    raise ValueError(f"warmup_steps: {config.warmup_steps} of {total_steps} steps; warm up for fewer steps or train longer")
  rest = max(total_steps - config.warmup_steps, 1)
  after = {
    "constant": optax.constant_schedule(config.learning_rate),
    "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
  }
  if config.schedule not in after:
    raise ValueError(f"schedule: {config.schedule!r} is unknown; use one of {sorted(after)}")
  if config.warmup_steps == 0:
    return after[config.schedule]
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([warmup, after[config.schedule]], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """The optimizer of every stage; norm scales are not decayed (Loshchilov & Hutter, arXiv 1711.05101)."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      make_schedule(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=_decayed,
    ),
  )


def _decayed(params: Any) -> Any:
  # By name, not by rank: under a scan over layers a norm's scale is a matrix.
  return jax.tree_util.tree_map_with_path(lambda path, _: "'scale'" not in jax.tree_util.keystr(path), params)
