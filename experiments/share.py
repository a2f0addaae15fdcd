"""Writes a finished run, or a finished sweep, as one file that another researcher repeats, compares or opens as a ZIP.

    python -m experiments.share --run=RUN --to=FILE.gr2 [--with-policy]
    python -m experiments.run --config=FILE.gr2 --workdir=NEW      # there

gr2_jax/runs/run_file.py says what the file holds. Weights are left out, unless `--with-policy` adds the policy that the run stands for.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

_RUN = flags.DEFINE_string("run", None, "finished run, or sweep of finished runs")
_TO = flags.DEFINE_string("to", None, "file to write, FILE.gr2")
_POLICY = flags.DEFINE_bool("with_policy", False, "with the final policy of the run: its parameters as arrays, and what its inputs mean")


def share(directory: str | None, to: str | None, *, with_policy: bool = False) -> int:
  """Writes the file and says what it is good for; returns the exit code and prints what went wrong."""

  def program() -> None:
    from gr2_jax.runs.portable import pack_policy  # here, since --help should not wait for JAX
    from gr2_jax.runs.run_file import SINGLE, SUFFIX, find_finished, write_run_file

    if not (directory and to):
      raise UserError("--run and --to are needed; for example --run=runs/quickstart --to=quickstart.gr2")
    if not to.endswith(SUFFIX):
      raise UserError(f"--to: {to} does not end in {SUFFIX}, by which experiments.run knows such a file; name it {to}{SUFFIX}")
    if pathlib.Path(to).exists():
      raise UserError(f"--to: {to} is there already; remove it, or name another file")
    runs, unfinished = find_finished(directory)
    single = [*runs, *unfinished] == [SINGLE]
    pages = {} if single else {name: pathlib.Path(directory, name) for name in ("sweep.json", "sweep.md")}
    unfinished |= {name: "it is not there" for name, page in pages.items() if not page.exists()}
    if unfinished:
      listed = "; ".join(f"{name}: {why}" for name, why in unfinished.items())
      raise UserError(f"--run: {directory} is not finished ({listed}); give its command again, or share one of its finished runs alone")
    if with_policy and not single:
      raise UserError("--with_policy: a sweep has many policies; share the run whose policy is wanted, --run=DIR/VARIANT/seed_N")
    policy = None
    if with_policy:
      run = runs[SINGLE]
      policy = pack_policy(run, _main_policy(run))
    write_run_file(to, runs, {name: _changes_of(run) for name, run in runs.items()}, pages=pages, policy=policy)
    named = to if single else f"{to}:{next(iter(runs))}"
    print(f"{to}: {len(runs)} {'run' if single else 'runs'}, {pathlib.Path(to).stat().st_size:,} bytes")
    print(f"To repeat {'it' if single else 'one of them'}: python -m experiments.run --config={named} --workdir=NEW")

  return exit_code_of(program, to)


def _main_policy(run: Any) -> str:
  """The ranker that the run stands for."""
  from gr2_jax.evaluation.results import POLICY, load_results

  name: str = load_results(run.path("evaluation", "results.json")).get("main_line", POLICY)
  return name


def _changes_of(run: Any) -> Mapping[str, Any]:
  """The keys at which a run's config is not the default, with their values."""
  from configs.base import base
  from gr2_jax.runs.fingerprints import config_to_json, flat_leaves

  defaults = flat_leaves(config_to_json(base()))
  return {key: value for key, value in flat_leaves(config_to_json(run.config)).items() if key not in defaults or defaults[key] != value}


def main(argv: Sequence[str]) -> int:
  """Shares the run that the flags name."""
  if len(argv) > 1:
    print(f"ERROR: {argv[1]!r} is no flag; write --run=RUN --to=FILE.gr2", file=sys.stderr)
    return 1
  return share(_RUN.value, _TO.value, with_policy=_POLICY.value)


if __name__ == "__main__":
  app.run(main)
