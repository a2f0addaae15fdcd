"""Writes a finished run, or a finished sweep, as one file that another researcher repeats, compares or opens as a ZIP.

    python -m experiments.share --run=RUN --to=FILE.gr2 [--with-policy]
    python -m experiments.run --config=FILE.gr2 --workdir=NEW      # there

gr2_jax/runs/run_file.py says what the file holds. Weights are left out, unless `--with-policy` adds the policy that the run stands for.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

_RUN = flags.DEFINE_string("run", None, "finished run, or sweep of finished runs")
_TO = flags.DEFINE_string("to", None, "file to write, FILE.gr2")
_POLICY = flags.DEFINE_bool("with-policy", False, "with the final policy of the run: its parameters as arrays, and what its inputs mean")


def main(argv: Sequence[str]) -> int:
  """Shares the run that the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --run=RUN --to=FILE.gr2", file=sys.stderr)
    return 1
  from experiments.exchange import share  # here, since --help should not wait for JAX

  return share(_RUN.value, _TO.value, with_policy=_POLICY.value)


if __name__ == "__main__":
  app.run(main)
