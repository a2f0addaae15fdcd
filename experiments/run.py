"""All stages of a config, in order, into a run directory; started again, it does only what is missing.

    python -m experiments.run --config=configs/quickstart.py --workdir=RUN [--stages=tokenize,midtrain] [--from=OTHER_RUN]
    python -m experiments.run --config=FILE.gr2 --workdir=NEW      # repeats a run that experiments.share wrote, and says whether it agrees

Values go over each other in this order: the config file with its argument, the files of `--overrides=FILE.toml` as they are given, then
`--config.key=value`.
Exit codes: 0 done, 1 error, 143 stopped by SIGTERM, 130 stopped by Ctrl-C; after a stop the same command goes on.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.flags import NAME, command_of, define_config, is_shared, parse_flags

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory; the same one goes on where it stopped")
_STAGES = flags.DEFINE_list("stages", None, "stages to run, each a file of experiments/stages (all)")
_FROM = flags.DEFINE_string("from", None, "a run, or a sweep, whose finished stages are taken over where they had the same inputs")
_CACHE = define_compilation_cache()


def main(argv: Sequence[str]) -> int:
  """Runs the stages that the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --stages=a,b and --config.key=value", file=sys.stderr)
    return 1
  # Here, since --help should not wait for JAX.
  from experiments.check import check_values
  from experiments.pipeline import execute
  from experiments.repeat import Repetition

  use_compilation_cache(_CACHE.value)
  given = flags.FLAGS[NAME]
  repeats = Repetition(given.config_filename, given.override_values) if is_shared(given.config_filename) else None
  command = command_of("experiments.run")
  return execute(_CONFIG.value, _WORKDIR.value, _STAGES.value, command, check=check_values, source=_FROM.value, repeats=repeats)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
