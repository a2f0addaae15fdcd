"""How a program ends: what went wrong in one line, and the exit code that `experiments.run` promises."""

import sys
from collections.abc import Callable

from absl import logging

from experiments.flags import ConfigError
from experiments.rundir import RunError
from gr2_jax.data.schema import DataError
from gr2_jax.training.interrupts import Interrupted


def exit_code_of(program: Callable[[], None]) -> int:
  """Runs a program over stages; returns its exit code and prints what went wrong in one line."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells every read and write at INFO
  try:
    program()
  except Interrupted as error:
    print(error, file=sys.stderr)
    return error.exit_code
  except (RunError, ConfigError, DataError, *_stage_errors()) as error:
    print(f"ERROR: {error}", file=sys.stderr)
    return 1
  return 0


def _stage_errors() -> tuple[type[Exception], ...]:
  """What stages raise with a message that says all; imported here, since it brings JAX along."""
  from gr2_jax.evaluation.results import ResultsError
  from gr2_jax.steps.rl import NoSignalError
  from gr2_jax.teachers.chat import ChatError
  from gr2_jax.training.checkpoints import CheckpointError
  from gr2_jax.training.guard import DivergedError

  return ChatError, CheckpointError, DivergedError, NoSignalError, ResultsError
