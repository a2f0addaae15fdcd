"""Finished stages of one run taken over into another, by links, where they had the same inputs."""

import os
import pathlib
import shutil
from collections.abc import Sequence

from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.inputs import expected_inputs, list_changes
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.stages import NeededStage


def find_runs(directory: str | os.PathLike[str]) -> list[Run]:
  """The run at `directory`, or all runs of the sweep there; raises RunError where there is neither."""
  root = pathlib.Path(directory)
  configs = [root / "config.json"] if (root / "config.json").exists() else sorted(root.glob("*/*/config.json"))
  if not configs:
    raise RunError(f"--from: {directory} is neither a run nor a sweep (no config.json); give the --workdir of one")
  return [Run.open(path.parent) for path in configs]


def plan_sharing(run: Run, needed: Sequence[NeededStage], sources: Sequence[Run]) -> dict[str, Run]:
  """Stage -> the first of `sources` that finished it with the inputs that it would have here, for stages that are not begun here.

  Of a stage that reads others, these must be finished here or taken over too.
  """
  found: dict[str, Run] = {}
  fingerprints: dict[str, str] = {}
  for stage in needed if sources else ():
    now = None if run.path(stage.name).exists() else expected_inputs(run, stage, fingerprints)
    if now is None:
      continue
    for other in sources:
      done = other.done(stage.name)
      if done is not None and not list_changes(run, stage.stage, done["reads"], now):
        found[stage.name], fingerprints[stage.name] = other, done["fingerprint"]
        break
  return found


def check_sources(run: Run, needed: Sequence[NeededStage], sources: Sequence[Run]) -> None:
  """Raises RunError, with what differs in the first stage, where nothing is finished in `run` and nothing can be taken over."""
  if not sources or any(run.is_done(stage.name) for stage in needed) or plan_sharing(run, needed, sources):
    return
  first, other = needed[0], sources[0]
  now, done = expected_inputs(run, first, {}), other.done(first.name)
  why = f"{first.name} is not finished there"
  if done is not None and now is not None:
    why = f"{first.name} was made with other values: {'; '.join(list_changes(run, first.stage, done['reads'], now))}"
  raise RunError(f"--from: no stage of {other.directory} can be taken over ({why}); undo the change, or leave --from out")


def take_over(run: Run, needed: NeededStage, siblings: Sequence[Run]) -> Run | None:
  """Links the finished stage, with its metrics, of the first sibling that had the same inputs; returns that sibling.

  None where no sibling has it, or where the stage was begun here. The inputs of the stage must be finished here.
  """
  sibling = plan_sharing(run, [needed], siblings).get(needed.name)
  if sibling is not None:
    link_stage(run, needed.name, sibling)
  return sibling


def link_stage(run: Run, name: str, source: Run) -> None:
  """Links a finished stage of `source`, with its metrics; raises RunError where an artifact is damaged there."""
  check_intact(source, name)
  for path in source.directory.glob("metrics/*.jsonl"):
    if path.stem == name or path.stem.startswith(f"{name}_"):
      _link(path, run.directory / "metrics" / path.name)
  _link(source.path(name), run.path(name))


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Hard links of a file, or of all files in a folder, that appear at once; copies where the file system cannot link."""
  partial = target.with_name(f".{target.name}.partial")
  if partial.is_dir():
    shutil.rmtree(partial)
  partial.unlink(missing_ok=True)
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, partial, copy_function=_link_file)
  else:
    _link_file(source, partial)
  os.replace(partial, target)


def _link_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)
