"""Makes a run's card again from its artifacts: card.md with its plots, and card.html, the same in one file to send on.

python -m experiments.card --run=RUN
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

_RUN = flags.DEFINE_string("run", None, "run directory with evaluation/results.json")


def rebuild(directory: str | None) -> int:
  """Writes the card and says where it lies; returns the exit code and prints what went wrong."""

  def program() -> None:
    from ml_collections import ConfigDict  # here, since --help should not wait for JAX

    from gr2_jax.reports.card import write_card
    from gr2_jax.runs.artifacts import check_intact
    from gr2_jax.runs.run import Run

    if not directory:
      raise UserError("--run is missing; for example --run=runs/quickstart")
    if not pathlib.Path(directory).is_dir():
      raise UserError(f"--run: {directory} is no folder; give the --workdir of a run")
    check_intact(Run(pathlib.Path(directory), ConfigDict(), main=False), "evaluation", "results.json", "per_slate.npz")
    card = write_card(directory)
    print(card, card.with_suffix(".html"), sep="\n")

  return exit_code_of(program, directory)


def main(argv: Sequence[str]) -> int:
  """Writes the card of the run that the flag names."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --run=RUN", file=sys.stderr)
    return 1
  return rebuild(_RUN.value)


if __name__ == "__main__":
  app.run(main)
