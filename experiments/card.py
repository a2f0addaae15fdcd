"""Makes a run's card.md and plots again from its artifacts.

python -m experiments.card --run=RUN
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from gr2_jax.evaluation.results import ResultsError
from gr2_jax.reports.card import write_card

_RUN = flags.DEFINE_string("run", None, "run directory with evaluation/results.json")


def rebuild(directory: str | None) -> int:
  """Writes the card and says where it lies; returns the exit code and prints what went wrong."""
  if not directory:
    print("ERROR: --run is missing; for example --run=runs/quickstart", file=sys.stderr)
    return 1
  if not pathlib.Path(directory).is_dir():
    print(f"ERROR: --run: {directory} is no folder; give the --workdir of a run", file=sys.stderr)
    return 1
  try:
    card = write_card(directory)
  except ResultsError as error:
    print(f"ERROR: {error}", file=sys.stderr)
    return 1
  print(card)
  return 0


def main(argv: Sequence[str]) -> int:
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --run=RUN", file=sys.stderr)
    return 1
  return rebuild(_RUN.value)


if __name__ == "__main__":
  app.run(main)
