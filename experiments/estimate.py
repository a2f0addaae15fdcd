"""What a run of a config takes, before anything runs: parameters, tokens, FLOPs, memory by stage, disk, and the time on this machine.

    python -m experiments.estimate --config=CONFIG [--config.key=value]

Compiles the steps of every training, which may take a minute or two, and times them for ten seconds; writes nothing.
How far its estimates were from real runs: docs/results/estimate.md
"""

import sys
from collections.abc import Sequence

from absl import app

from experiments.compilation_cache import OFF, use_compilation_cache
from experiments.exit_code import exit_code_of
from experiments.flags import define_config, parse_flags

_CONFIG = define_config()


def main(argv: Sequence[str]) -> int:
  """Prints the estimate of the flags' config."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --config=FILE.py and --config.key=value", file=sys.stderr)
    return 1

  def program() -> None:
    # Here, since --help should not wait for JAX.
    from rich.console import Console

    from experiments.check import check_values
    from experiments.estimates.estimate import estimate
    from experiments.estimates.table import print_estimate

    check_values(_CONFIG.value)
    use_compilation_cache(OFF)  # nothing is written, and compilations are those of a first run
    print_estimate(estimate(_CONFIG.value), Console())

  return exit_code_of(program)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
