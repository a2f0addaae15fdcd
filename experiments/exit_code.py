"""How a program ends: what went wrong in one line, and the exit code that `experiments.run` promises."""

import sys
from collections.abc import Callable

from absl import logging

from gr2_jax.errors import UserError
from gr2_jax.training.interrupts import Interrupted


def exit_code_of(program: Callable[[], None]) -> int:
  """Runs a program over stages; returns its exit code and prints what went wrong in one line."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells every read and write at INFO
  try:
    program()
  except Interrupted as error:
    print(error, file=sys.stderr)
    return error.exit_code
  except UserError as error:
    print(f"ERROR: {error}", file=sys.stderr)
    return 1
  return 0
