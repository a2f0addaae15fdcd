"""What travels: runs written as files, and compared, and models in the layout of others (`experiments.share`, `compare`, `convert`)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError
from gr2_jax.evaluation.results import POLICY, load_results
from gr2_jax.models.conversion import convert_model
from gr2_jax.printable import escape_lines
from gr2_jax.reports.side_by_side import check_folder, compare_sides, read_sides, render_comparison, write_comparison
from gr2_jax.runs.export import export_policy, find_exported
from gr2_jax.runs.fingerprints import config_to_json, flat_leaves
from gr2_jax.runs.portable import pack_policy
from gr2_jax.runs.run import Run, read_object
from gr2_jax.runs.run_file import SINGLE, SUFFIX, find_finished, write_run_file
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress


def share(directory: str | None, to: str | None, *, with_policy: bool = False) -> int:
  """Writes the file and says what it is good for; returns the exit code and prints what went wrong."""

  def program() -> None:
    if not (directory and to):
      raise UserError("--run and --to are needed; for example --run=runs/quickstart --to=quickstart.gr2")
    if not to.endswith(SUFFIX):
      raise UserError(f"--to: {to} does not end in {SUFFIX}, by which experiments.run knows such a file; name it {to}{SUFFIX}")
    if pathlib.Path(to).exists():
      raise UserError(f"--to: {to} is there already; remove it, or name another file")
    runs, unfinished = find_finished(directory)
    single = [*runs, *unfinished] == [SINGLE]
    pages = {} if single else {name: pathlib.Path(directory, name) for name in ("sweep.json", "sweep.md")}
    listed = _runs_of_sweep(pages["sweep.json"]) if pages and pages["sweep.json"].exists() else []
    unfinished |= {name: "it is not there" for name in listed if name not in runs and name not in unfinished}
    unfinished |= {name: "it is not there" for name, page in pages.items() if not page.exists()}
    if unfinished:
      reasons = "; ".join(f"{name}: {why}" for name, why in unfinished.items())
      raise UserError(f"--run: {directory} is not finished ({reasons}); give its command again, or share one of its finished runs alone")
    if with_policy and not single:
      raise UserError("--with-policy: a sweep has many policies; share the run whose policy is wanted, --run=DIR/VARIANT/seed_N")
    policy = None
    if with_policy:
      run = runs[SINGLE]
      policy = pack_policy(run, _main_policy(run))
    write_run_file(to, runs, {name: _changes_of(run) for name, run in runs.items()}, pages=pages, policy=policy)
    named = to if single else f"{to}:{next(iter(runs))}"
    print(f"{to}: {len(runs)} {'run' if single else 'runs'}, {pathlib.Path(to).stat().st_size:,} bytes")
    print(f"To repeat {'it' if single else 'one of them'}: python -m experiments.run --config={named} --workdir=NEW")

  return exit_code_of(program, to)


def _runs_of_sweep(path: pathlib.Path) -> list[str]:
  """The names of the runs whose table a sweep.json is."""
  variants = read_object(path, "give the sweep's command again").get("variants", {})
  return [f"{variant}/seed_{seed}" for variant, of in variants.items() for seed in of["seeds"]]


def _main_policy(run: Run) -> str:
  """The ranker that the run stands for."""
  name: str = load_results(run.path("evaluation", "results.json")).get("main_line", POLICY)
  return name


def _changes_of(run: Run) -> Mapping[str, Any]:
  """The keys at which a run's config is not the default, with their values."""
  from configs.base import base

  defaults = flat_leaves(config_to_json(base()))
  return {key: value for key, value in flat_leaves(config_to_json(run.config)).items() if key not in defaults or defaults[key] != value}


def compare(paths: Sequence[str], to: str | None) -> int:
  """Prints the tables and writes the page; returns the exit code and prints what went wrong."""

  def program() -> None:
    if to:
      check_folder(to)
    sides, left_out = read_sides(paths)
    for line in left_out:
      print(escape_lines(line))
    compared = compare_sides(sides, left_out)
    Console().print(render_comparison(compared))
    if to:
      print(f"The tables, with plots: {write_comparison(to, sides, compared)}")

  return exit_code_of(program, to)


def convert(source: str | None, to: str | None, dtype: str | None, *, export: bool = False) -> int:
  """Writes a published model, or a policy of a run, as a folder; returns the exit code and prints what went wrong."""

  def program() -> None:
    if not (source and to):
      raise UserError("--from and --to are needed; for example --from=downloads/SmolLM2-135M-Instruct --to=models/smollm2")
    progress = Progress()
    with StopSignal() as stop:
      if export:
        export_policy(*find_exported(source), to, dtype, progress, stop)
      elif pathlib.Path(source, "versions.json").exists():
        raise UserError(f"--from: {source} is a run; add --export to write its policy for others")
      else:
        convert_model(source, to, dtype, progress, stop)
    progress.note(f"{to}: {'README.md says how to use it' if export else f'start from it with --config.model.init=hf:{to}'}")

  return exit_code_of(program, to)
