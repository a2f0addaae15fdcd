"""Runs, sweeps and shared files side by side: where their configs differ, their rankers in pairs, and all curves in one picture.

    python -m experiments.compare A B ... [--to=DIR]

A, B: a run directory, a sweep's, FILE.gr2, or a part of it: FILE.gr2:VARIANT or FILE.gr2:VARIANT/seed_N. Intervals are paired where both
were tested on the same slates; where not, the reason is told and the means stand beside each other. `--to` writes the page compare.md
with its plots and compare.json.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

_TO = flags.DEFINE_string("to", None, "folder for compare.md, compare.json and plots/ (none: the tables are printed alone)")


def main(argv: Sequence[str]) -> int:
  """Compares what the arguments name."""
  if len(argv) < 2:
    print("ERROR: nothing to compare; name two or more runs, sweeps or files: python -m experiments.compare A B", file=sys.stderr)
    return 1
  from experiments.exchange import compare  # here, since --help should not wait for JAX

  return compare(argv[1:], _TO.value)


if __name__ == "__main__":
  app.run(main)
