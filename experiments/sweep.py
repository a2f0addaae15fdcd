"""Every variant of an ablation with every seed, each an ordinary run; then one table of all.

    python -m experiments.sweep --config=configs/ablations/reward_hacking.py --workdir=DIR [--only=naive_upstream] [--seeds=0,1]

`--overrides=FILE.toml` and `--config.key=value` hold for all runs, under the changes of a variant, and `--stages` for each, as in
experiments.run; `--from` also takes another sweep.
An ablation file has `get_config(arg)`, which takes `seed=N`; `VARIANTS`: name -> {dotted config key: value}; and `SEEDS`;
`get_variants(arg)` where some variant is another one for another `arg`. The runs lie at
DIR/VARIANT/seed_N; the value `run:VARIANT` names that of an earlier variant with the same seed. A stage that had the same inputs in another
of them is linked from there instead of run again. Results: DIR/sweep.md, sweep.json, plots/; an ablation may have `COMPARISONS`, `SHOWN`,
`FRONTS` and `SHARES` (see gr2_jax/reports/comparisons.py). Exit codes are those of experiments.run; after a stop the same command goes on.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

import experiments.run  # defines --config, --overrides, --workdir, --stages, --from and --compilation_cache
from experiments.compilation_cache import use_compilation_cache
from experiments.flags import NAME, command_of, parse_flags

_ONLY = flags.DEFINE_list("only", None, "variants to run (all)")
_SEEDS = flags.DEFINE_list("seeds", None, "seeds to run (those of the ablation)")

flags.adopt_module_key_flags(experiments.run)


def main(argv: Sequence[str]) -> int:
  """Runs the ablation that the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --config=FILE --workdir=DIR", file=sys.stderr)
    return 1
  from experiments.variants import execute  # here, since --help should not wait for JAX

  use_compilation_cache(flags.FLAGS.compilation_cache)
  given = flags.FLAGS[NAME]
  return execute(
    given.config_filename,
    flags.FLAGS.workdir,
    command_of("experiments.sweep"),
    overrides=given.override_values,
    names=flags.FLAGS.stages,
    only=_ONLY.value,
    seeds=_SEEDS.value,
    source=flags.FLAGS["from"].value,
  )


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
