"""The stages of a config, chosen, run and skipped: what `experiments.run` and `experiments.sweep` do."""

import difflib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments.exit_code import exit_code_of
from experiments.look_ahead import look_ahead
from experiments.repeat import Repetition
from experiments.stages import load_stages
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.life import check_stages, is_finished, open_stage
from gr2_jax.runs.lock import locked
from gr2_jax.runs.run import Run, RunError, begin_run, check_directory
from gr2_jax.runs.sharing import check_sources, find_runs, link_stage, plan_sharing, take_over
from gr2_jax.runs.stages import NeededStage, Stage, needed_stages, open_context
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


def run_stages(
  run: Run,
  stages: Sequence[NeededStage],
  progress: Progress,
  stop: StopSignal,
  siblings: Sequence[Run] = (),
  repeats: Repetition | None = None,
) -> None:
  """Runs what is not done yet, nor to be linked from `siblings`, on inputs that are intact; `repeats`: see `execute`.

  Raises Interrupted when a signal asked to stop, and as soon as the stage `data` is done ConfigError for all settings that its data forbid.
  """
  intact: set[str] = set()
  looked = False
  for place, stage in enumerate(stages):
    if is_finished(run, stage):
      seconds = (run.done(stage.name) or {})["seconds"]
      progress.note(f"{stage.name}: done before in {format_seconds(seconds)}, skipped")
      continue
    sibling = take_over(run, stage, siblings)
    if sibling is not None:
      progress.note(f"{stage.name}: the same as in {sibling.directory}, linked")
      continue
    for name in stage.inputs:
      if name not in intact:
        check_intact(run, name)
    intact |= {*stage.inputs, stage.name}
    if not looked and run.is_done("data"):
      if repeats is not None:
        repeats.tell_data(run, progress)
      look_ahead(run, stages[place:], progress, stop)
      looked = True
    began = time.monotonic()
    with open_stage(run, stage):
      stage.stage.run(open_context(run, stage.stage, progress, stop))
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
  source: str | None = None,
  repeats: Repetition | None = None,
) -> int:
  """The program behind the flags, over the stages `known` (None: all); returns the exit code and prints what went wrong.

  `check` raises ConfigError for values that the stages could not use. `source`: see `--from`. `repeats`: the shared run that is repeated:
  what differs is told before anything is trained, and whether it agrees at the end.
  """
  progress = Progress()

  def program() -> None:
    if not workdir:
      raise RunError("--workdir is missing; for example --workdir=runs/quickstart")
    all_stages = load_stages() if known is None else known
    stages = choose_stages(names, all_stages, config)
    to_be, needed = Run(pathlib.Path(workdir), config), needed_stages(all_stages, config)
    check_directory(to_be.directory)
    if repeats is not None:
      repeats.check()
    sources = find_runs(source) if source else []
    check_stages(to_be, stages, all_stages, sources=sources)
    check_sources(to_be, needed, sources)
    if config.get("distributed"):
      jax.distributed.initialize()  # before the check, which asks how many devices and processes there are
    if check is not None:
      check(config)
    differences = repeats.tell(config, progress) if repeats is not None and _is_first(config) else {}
    with locked(workdir) if _is_first(config) else nullcontext():
      run = _open_everywhere(workdir, config, command, lambda run: take_over_all(run, needed, sources, progress))
      if run.main:
        _print_header(run, stages, names or [stage.name for stage in all_stages], progress)
      with StopSignal() as stop:
        run_stages(run, stages, progress, stop, repeats=repeats)
      if repeats is not None and run.main and run.is_done("evaluation"):
        repeats.conclude(run, differences, progress)
    card = run.path("evaluation", "card.md")
    if run.main and card.exists():
      progress.note(f"The table, with data, seeds and versions: {card}")

  return exit_code_of(program, workdir)


def take_over_all(run: Run, needed: Sequence[NeededStage], sources: Sequence[Run], progress: Progress) -> None:
  """Links every stage that one of `sources` has finished with the same inputs."""
  for name, other in plan_sharing(run, needed, sources).items():
    link_stage(run, name, other)
    progress.note(f"{name}: the same as in {other.directory}, linked")


def _is_first(config: ConfigDict) -> bool:
  """Whether this process is the one that writes."""
  return not config.get("distributed") or jax.process_index() == 0


def _open_everywhere(workdir: str, config: ConfigDict, command: Sequence[str], prepare: Callable[[Run], None]) -> Run:
  """Opens the run in this process; with `config.distributed` in all of them, of which the first one writes and prepares it."""
  run = None
  if _is_first(config):
    run = begin_run(workdir, config, command)
    prepare(run)
  if config.get("distributed"):
    multihost_utils.sync_global_devices("run directory")
  return begin_run(workdir, config, command, main=False) if run is None else run


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
