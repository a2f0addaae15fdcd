"""The runs of an ablation: planned and checked before the first starts, done seed by seed, and their table (see `experiments.sweep`)."""

import pathlib
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from experiments.check import check_values
from experiments.exit_code import exit_code_of
from experiments.flags import check_overrides, load_config, load_module
from experiments.pipeline import choose_stages, run_stages, take_over_all
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.runs.life import check_stages, is_finished
from gr2_jax.runs.lock import locked
from gr2_jax.runs.run import Run, RunError, begin_run, check_directory
from gr2_jax.runs.sharing import find_runs
from gr2_jax.runs.stages import NeededStage, needed_stages
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress, format_seconds

Configs = Mapping[str, Mapping[int, ConfigDict]]  # variant -> seed -> config
_RUN = "run:"


def execute(
  path: str,
  workdir: str | None,
  command: Sequence[str],
  *,
  overrides: Mapping[str, Any] | None = None,
  names: Sequence[str] | None = None,
  only: Sequence[str] | None = None,
  seeds: Sequence[str] | None = None,
  source: str | None = None,
) -> int:
  """The program behind the flags (`names` of stages, `source`: see `--from`); returns the exit code and prints what went wrong."""
  progress = Progress()

  def program() -> None:
    if not workdir:
      raise RunError("--workdir is missing; for example --workdir=runs/reward_hacking")
    variants, configs = plan(path, only, seeds, overrides or {}, pathlib.Path(workdir))
    sources = find_runs(source) if source else []
    runs = check_runs(pathlib.Path(workdir), configs, names, sources)
    with StopSignal() as stop:
      run_all(runs, names, command, sources, progress, stop)
    if names is None or load_stages()[-1].name in names:
      _write_results(pathlib.Path(workdir), runs, variants, load_module(path), progress)

  return exit_code_of(program, workdir)


def plan(
  path: str, only: Sequence[str] | None, seeds: Sequence[str] | None, overrides: Mapping[str, Any], workdir: pathlib.Path
) -> tuple[Mapping[str, Mapping[str, Any]], Configs]:
  """The chosen variants and the config of each run, all checked; a variant's changes go over the `overrides` of all.

  Raises ConfigError for a file that is no ablation, for unknown variants, seeds that are no integers, and, naming the variant, for a key
  that the config lacks or a value that no stage could use.
  """
  module = load_module(path)
  for name in ("VARIANTS", "SEEDS"):
    if not getattr(module, name, None):
      raise ConfigError(f"--config: {path} has no {name}, so it is no ablation; python -m experiments.run takes single experiments")
  known = module.get_variants(path.partition(":")[2]) if hasattr(module, "get_variants") else module.VARIANTS
  unknown = [name for name in only or () if name not in known]
  if unknown:
    raise ConfigError(f"--only: {unknown[0]!r} is no variant; there are: {', '.join(known)}")
  wrong = [seed for seed in seeds or () if not seed.isdecimal()]
  if wrong:
    raise ConfigError(f"--seeds: {wrong[0]!r} is no seed; write for example --seeds=0,1")
  variants = {name: changes for name, changes in known.items() if only is None or name in only}
  chosen = module.SEEDS if seeds is None else list(map(int, seeds))
  return variants, {
    name: {seed: _make_config(path, seed, name, _name_runs({**overrides, **changes}, workdir, seed)) for seed in chosen}
    for name, changes in variants.items()
  }


def _run_directory(workdir: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
  return workdir / variant / f"seed_{seed}"


def _name_runs(changes: Mapping[str, Any], workdir: pathlib.Path, seed: int) -> dict[str, Any]:
  """The changes with `run:VARIANT` replaced by that variant's run directory."""

  def name(value: Any) -> Any:
    named = isinstance(value, str) and value.startswith(_RUN)
    return str(_run_directory(workdir, value.removeprefix(_RUN), seed)) if named else value

  return {key: name(value) for key, value in changes.items()}


def _make_config(path: str, seed: int, variant: str, changes: Mapping[str, Any]) -> ConfigDict:
  config = load_config(f"{path}{',' if ':' in path else ':'}seed={seed}")
  try:
    check_overrides(config, [(key, str(value)) for key, value in changes.items()])
    config.update_from_flattened_dict(changes)
    check_values(config)
  except ConfigError as error:
    raise ConfigError(f"variant {variant}: {error}") from None
  return config


def check_runs(workdir: pathlib.Path, configs: Configs, names: Sequence[str] | None, sources: Sequence[Run]) -> dict[str, dict[int, Run]]:
  """Every run as it is or will be; raises RunError for a folder that is no run, and what `check_stages` raises."""
  ahead: set[pathlib.Path] = set()
  runs: dict[str, dict[int, Run]] = {variant: {} for variant in configs}
  for variant, of in configs.items():
    for seed, config in of.items():
      run = runs[variant][seed] = Run(_run_directory(workdir, variant, seed), config)
      check_directory(run.directory)
      check_stages(run, _stages_of(run, names), load_stages(), ahead=ahead, sources=sources, workdir=workdir)
      ahead.add(run.directory)
  return runs


def run_all(
  runs: Mapping[str, Mapping[int, Run]],
  names: Sequence[str] | None,
  command: Sequence[str],
  sources: Sequence[Run],
  progress: Progress,
  stop: StopSignal,
) -> None:
  """Does what is missing, a seed after the other, so that a part of a sweep already compares all variants."""
  queue = sorted(((seed, variant, run) for variant, of in runs.items() for seed, run in of.items()), key=lambda entry: entry[0])
  missing = [entry for entry in queue if not all(is_finished(entry[2], stage) for stage in _stages_of(entry[2], names))]
  if len(missing) < len(queue):
    progress.note(f"{len(queue) - len(missing)} of {len(queue)} runs done before, skipped")
  began = time.monotonic()
  for number, (seed, variant, run) in enumerate(missing):
    passed = time.monotonic() - began
    left = f", about {format_seconds(passed / number * (len(missing) - number))} left" if number else ""
    progress.note(f"run {len(queue) - len(missing) + number + 1} of {len(queue)}: {variant}, seed {seed}{left}")
    with locked(run.directory):
      begin_run(run.directory, run.config, command)
      take_over_all(run, needed_stages(load_stages(), run.config), sources, progress)
      _run_one(run, _stages_of(run, names), [other for _, _, other in queue], progress, stop)


def _stages_of(run: Run, names: Sequence[str] | None) -> list[NeededStage]:
  return choose_stages(names, load_stages(), run.config)


def _run_one(run: Run, stages: Sequence[NeededStage], siblings: Sequence[Run], progress: Progress, stop: StopSignal) -> None:
  import jax

  run_stages(run, stages, progress, stop, siblings)
  jax.clear_caches()  # the next run builds its own functions, and these would stay in memory


def asked_of(ablation: ModuleType) -> dict[str, Any]:
  """What an ablation asks of its variants, by the arguments of `reports.sweeps.build_sweep`."""
  return {name: getattr(ablation, name.upper(), {}) for name in ("comparisons", "shares", "shown", "fronts")}


def _write_results(
  workdir: pathlib.Path, runs: Mapping[str, Mapping[int, Run]], variants: Mapping[str, Any], ablation: ModuleType, progress: Progress
) -> None:
  from gr2_jax.reports.sweeps import build_sweep, render_sweep_table, write_sweep
  from gr2_jax.runs.run_file import read_run

  records = {variant: {seed: read_run(run) for seed, run in of.items()} for variant, of in runs.items()}
  sweep = build_sweep(records, variants, **asked_of(ablation))
  page = write_sweep(workdir, records, sweep)
  progress.console.print(render_sweep_table(sweep))
  progress.note(f"The tables, with plots, versions and commands: {page}")
