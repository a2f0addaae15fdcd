"""The stages of a config, chosen, run and skipped: what `experiments.run` and `experiments.sweep` do."""

import difflib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.exit_code import exit_code_of
from experiments.stages import load_stages
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.stages import NeededStage, Stage, check_stages, is_finished, needed_stages, open_stage
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress, format_seconds


def choose_stages(names: Sequence[str] | None, stages: Sequence[Stage], config: ConfigDict) -> list[NeededStage]:
  """The named stages that the config needs, in the order of the pipeline; all of these for None. Raises RunError for an unknown name."""
  known = [stage.name for stage in stages]
  for name in names or ():
    if name not in known:
      near = difflib.get_close_matches(name, known, n=2)
      hint = f", did you mean {' or '.join(near)}?" if near else ""
      raise RunError(f"--stages: {name!r} is no stage{hint}; there are: {', '.join(known)}")
  return [stage for stage in needed_stages(stages, config) if names is None or stage.name in names]


def run_stages(run: Run, stages: Sequence[NeededStage], progress: Progress, stop: StopSignal) -> None:
  """Runs what is not done yet. Raises Interrupted when a signal asked to stop."""
  for stage in stages:
    if is_finished(run, stage):
      seconds = (run.done(stage.name) or {})["seconds"]
      progress.note(f"{stage.name}: done before in {format_seconds(seconds)}, skipped")
      continue
    began = time.monotonic()
    with open_stage(run, stage):
      stage.stage.run(StageContext(run, stage.name, progress, stop))
    _wait_for_all(run, stage.name)
    progress.note(f"{stage.name}: done in {format_seconds(time.monotonic() - began)}")
    stop.check()


def execute(
  config: ConfigDict,
  workdir: str | None,
  names: Sequence[str] | None,
  command: Sequence[str],
  known: Sequence[Stage] | None = None,
  check: Callable[[ConfigDict], None] | None = None,
) -> int:
  """The program behind the flags, over the stages `known` (None: all); returns the exit code and prints what went wrong.

  `check` raises ConfigError for values that the stages could not use.
  """
  progress = Progress()

  def program() -> None:
    if not workdir:
      raise RunError("--workdir is missing; for example --workdir=runs/quickstart")
    all_stages = load_stages() if known is None else known
    stages = choose_stages(names, all_stages, config)
    check_stages(Run(pathlib.Path(workdir), config), stages)
    if config.get("distributed"):
      jax.distributed.initialize()  # before the check, which asks how many devices and processes there are
    if check is not None:
      check(config)
    run = _open_everywhere(workdir, config, command)
    if run.main:
      _print_header(run, stages, names or [stage.name for stage in all_stages], progress)
    with StopSignal() as stop:
      run_stages(run, stages, progress, stop)
    card = run.path("evaluation", "card.md")
    if run.main and card.exists():
      progress.note(f"The table, with data, seeds and versions: {card}")

  return exit_code_of(program, workdir)


def _open_everywhere(workdir: str, config: ConfigDict, command: Sequence[str]) -> Run:
  """Opens the run in this process; with `config.distributed` in all of them, of which the first one writes."""
  if not config.get("distributed"):
    return begin_run(workdir, config, command)
  if jax.process_index() == 0:
    run = begin_run(workdir, config, command)
  multihost_utils.sync_global_devices("run directory")
  return run if jax.process_index() == 0 else begin_run(workdir, config, command, main=False)


def _wait_for_all(run: Run, name: str) -> None:
  """No process starts the next stage before the first has written what this one leaves."""
  if run.config.get("distributed"):
    multihost_utils.sync_global_devices(name)


def _print_header(run: Run, stages: Sequence[NeededStage], asked: Sequence[str], progress: Progress) -> None:
  devices = jax.devices()
  chosen = [stage.name for stage in stages]
  left_out = [name for name in asked if name not in chosen]
  lines = {
    "config": run.directory / "config.json",
    "workdir": run.directory,
    "stages": ", ".join(chosen) + (f" (not needed by this config, skipped: {', '.join(left_out)})" if left_out else ""),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "versions": f"Python {sys.version.split()[0]}, jax {jax.__version__} (all in versions.json)",
  }
  for name, value in lines.items():
    progress.note(f"{name:>9}  {value}")
