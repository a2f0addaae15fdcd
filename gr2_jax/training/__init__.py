"""State, mesh and sharding rules, the loop, checkpoints and metric writers of every trained stage."""

from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.loop import StepResult, batch_step, fit
from gr2_jax.training.mesh import jit_update, make_mesh
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer

__all__ = [
  "Checkpointer",
  "Metric",
  "OptimizerConfig",
  "StepResult",
  "TrainState",
  "batch_step",
  "fit",
  "init_state",
  "jit_update",
  "make_mesh",
  "make_optimizer",
]
