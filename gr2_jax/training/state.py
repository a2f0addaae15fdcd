"""What an update step carries from step to step, and its optimizer."""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gr2_jax.settings import check_settings, setting

_ADAM_RMS = 0.2  # root mean square of an AdamW update at learning rate 1


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
  """The update rule, with clipping by global norm.

  `muon` orthogonalises the momentum of the matrices inside the layers and leaves tables and norms to AdamW (Jordan et al. 2024). Its
  updates are scaled to the size of AdamW's (arXiv 2502.16982), so that both take the same learning rates. Raises ValueError.
  """

  learning_rate: float = setting(meaning="the highest learning rate of the schedule", above=0)
  rule: Literal["adamw", "muon"] = setting(
    "adamw", "how gradients become updates: by AdamW, or by Muon for the layers' matrices and AdamW for the rest"
  )
  schedule: Literal["constant", "cosine", "linear"] = setting(
    "constant", "course of the learning rate after the warm-up; cosine and linear end at 0"
  )
  warmup_steps: int = setting(0, "updates over which the learning rate rises linearly from 0", unit="updates", low=0)
  weight_decay: float = setting(0.0, "weight decay of all parameters but the scales of norms", low=0)
  clip_norm: float = setting(1.0, "global norm to which larger gradients are scaled down", above=0)
  b1: float = setting(0.9, "decay of Adam's first moment", low=0, below=1)
  b2: float = setting(0.95, "decay of Adam's second moment", low=0, below=1)

  def __post_init__(self) -> None:
    check_settings(self)


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
  if config.warmup_steps == 0:
    return after[config.schedule]
  warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([warmup, after[config.schedule]], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """The optimizer of every stage; norm scales are not decayed (Loshchilov & Hutter, arXiv 1711.05101). Raises ValueError for settings
  that cannot hold.
  """
  schedule = make_schedule(config, total_steps)
  if config.rule == "adamw":
    rule = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=_decayed)
  else:
    rule = optax.contrib.muon(
      schedule,
      adam_b1=config.b1,
      adam_b2=config.b2,
      weight_decay=config.weight_decay,
      adam_weight_decay=config.weight_decay,
      weight_decay_mask=_decayed,
      muon_weight_dimension_numbers=_matrix_axes,
      consistent_rms=_ADAM_RMS,
    )
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def _decayed(params: Any) -> Any:
  # By name, not by rank: under a scan over layers a norm's scale is a matrix.
  return jax.tree_util.tree_map_with_path(lambda path, _: "'scale'" not in jax.tree_util.keystr(path), params)


def _matrix_axes(params: Any) -> Any:
  """Which axes of each kernel are a matrix's rows and columns; None for what is no matrix. Axis 0 counts the layers."""

  def of(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]  # not the boxes of logical axes
    if names[-1] == "kernel":
      inputs = leaf.ndim - 2 if names[-2] == "out" else 1  # attention's output reads heads and head_dim, all else reads one axis
    elif names[-1] in ("lora_a", "lora_b"):  # each factor is a matrix, the rank its last axis or its first
      inputs = leaf.ndim - 2 if names[-1] == "lora_a" else 1
    else:
      return None
    return optax.contrib.MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, leaf.ndim)))

  return jax.tree_util.tree_map_with_path(of, params)
