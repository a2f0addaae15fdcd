"""The life of a stage in a run directory: what it needs, whether it may stay, how it begins and how it ends."""

import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gr2_jax.data.schema import DataError
from gr2_jax.files import write_json
from gr2_jax.runs.artifacts import artifact_paths, describe_artifacts
from gr2_jax.runs.fingerprints import config_to_json, fingerprint_of, flat_keys, value_at
from gr2_jax.runs.inputs import config_of, done_elsewhere, expected_inputs, inputs_of, list_changes
from gr2_jax.runs.policies import write_policies
from gr2_jax.runs.run import Run, RunError, read_mark
from gr2_jax.runs.sharing import plan_sharing
from gr2_jax.runs.stages import NeededStage, Stage, needed_stages

# Before anything runs.


def check_stages(
  run: Run,
  chosen: Sequence[NeededStage],
  known: Sequence[Stage],
  *,
  ahead: Iterable[pathlib.Path] = (),
  sources: Sequence[Run] = (),
  workdir: pathlib.Path | None = None,
) -> None:
  """Raises RunError when the stages `chosen` of all that are `known` could not run, or when what is there could not stay.

  So it is for a key that the config lacks, for an input that is neither finished nor run before, and for stages that were made with other
  values. `ahead`: directories of other runs that will be finished by then. `sources`: runs whose stages are taken over (`plan_sharing`).
  `workdir`: that of the sweep that the run belongs to.
  """
  keys = flat_keys(config_to_json(run.config))
  for stage in (needed.stage for needed in chosen):
    unknown = [key for key in (*stage.reads, *stage.files) if key not in keys]
    if unknown:
      raise RunError(f"stage {stage.name!r} reads config.{', config.'.join(unknown)}, which this config lacks; add it to the config file")
    for directory, of in stage.runs:
      if pathlib.Path(value_at(run.config, directory)) not in ahead:
        done_elsewhere(run, directory, of)
  needed = needed_stages(known, run.config)
  _check_inputs(run, chosen, needed, plan_sharing(run, needed, sources))
  changes = _list_all_changes(run, chosen, needed, known)
  if changes:
    raise _changed(run, changes, needed, workdir)


def _check_inputs(run: Run, chosen: Sequence[NeededStage], needed: Sequence[NeededStage], shared: Iterable[str]) -> None:
  """Names every stage that must run before those chosen, and the command that runs them."""
  asked = [stage.name for stage in chosen]
  wanted = set(asked)
  for stage in reversed(needed):  # each stands behind its inputs
    if stage.name in wanted:
      wanted |= {name for name in stage.inputs if name not in shared and not run.is_done(name)}
  missing = [stage.name for stage in needed if stage.name in wanted and stage.name not in asked]
  if missing:
    command = ",".join(stage.name for stage in needed if stage.name in wanted)
    raise RunError(
      f"--stages: {', '.join(asked)} needs the artifacts of {', '.join(missing)}, not finished in {run.directory}; "
      f"run these too, --stages={command}, or all, without --stages"
    )


def _list_all_changes(
  run: Run, chosen: Sequence[NeededStage], needed: Sequence[NeededStage], known: Sequence[Stage]
) -> dict[str, list[str]]:
  """Stage -> what differs, for those that were made with other values.

  The stages chosen, and those on the way to them, must be made from what they would read now; all others with the config as it is.
  """
  followed = {stage.name for stage in chosen}
  for later in reversed(needed):
    if later.name in followed:
      followed.update(later.inputs)
  needed_by_name = {stage.name: stage for stage in needed}
  changes: dict[str, list[str]] = {}
  fingerprints: dict[str, str] = {}
  for stage in known:
    before = _begun_with(run, stage.name)
    if stage.name in followed:
      now = expected_inputs(run, needed_by_name[stage.name], fingerprints)
      if now is not None:
        fingerprints[stage.name] = fingerprint_of(now)
    else:
      now, before = {"config": config_of(run, stage)}, before and {"config": before["config"]}
    if before is not None and now is not None and (lines := list_changes(run, stage, before, now)):
      changes[stage.name] = lines
  return changes


def _changed(
  run: Run, changes: Mapping[str, Sequence[str]], needed: Sequence[NeededStage] = (), workdir: pathlib.Path | None = None
) -> RunError:
  """What differs, stage by stage, and what can be done about it."""
  stays: list[str] = []
  for stage in needed:
    if stage.name not in changes and run.is_done(stage.name) and all(name in stays for name in stage.inputs):
      stays.append(stage.name)
  begun = [str(run.path(name)) for name in changes if not run.is_done(name)]
  listed = "\n".join(f"  {name}, {'finished' if run.is_done(name) else 'begun'}: {line}" for name, of in changes.items() for line in of)
  remedies = ["undo the change", f"remove {' and '.join(begun)} to begin anew"][: 1 + bool(begun)]
  new = f"use --workdir=NEW --from={workdir or run.directory}, which takes over {', '.join(stays)}" if stays else "use another --workdir"
  remedies.append(new)
  return RunError(
    f"{run.directory}: {', '.join(changes)} {'were' if len(changes) > 1 else 'was'} made with other values; nothing was overwritten. "
    f"What changed (old -> new):\n{listed}\nEither {', or '.join(remedies)}"
  )


# A stage's life.


def is_finished(run: Run, needed: NeededStage) -> bool:
  """Whether the stage is finished with the inputs that it would have now.

  Raises RunError when it is finished, or was begun, with others: nothing is overwritten.
  """
  name = needed.name
  before = _begun_with(run, name)
  if before is None:
    return False
  changes = list_changes(run, needed.stage, before, inputs_of(run, needed))
  if changes:
    raise _changed(run, {name: changes})
  done = run.done(name)
  gone = [file for file in (done or {"outputs": ()})["outputs"] if not run.path(name, file).exists()]
  if gone:
    raise RunError(f"{', '.join(gone)} of the finished stage {name!r} is gone; restore it, or remove {run.path(name)} to make it again")
  return done is not None


@contextmanager
def open_stage(run: Run, needed: NeededStage) -> Iterator[None]:
  """Marks the stage as begun, and as done when the body ends without an exception.

  The seconds in `done.json` are those of all sessions that worked on it. A stage that refused its input before it had a
  checkpoint counts as not begun, so that the input can be mended and the command given again.
  """
  reads = inputs_of(run, needed)
  started = run.path(needed.name, "started.json")
  seconds = (read_mark(started) or {"seconds": 0.0})["seconds"]
  if run.main:
    write_json(started, {"reads": reads, "seconds": seconds})
  began = time.monotonic()
  try:
    yield
  except BaseException as error:
    if run.main and isinstance(error, DataError) and not any(path.is_dir() for path in started.parent.iterdir()):
      started.unlink()
    elif run.main:
      write_json(started, {"reads": reads, "seconds": seconds + time.monotonic() - began})
    raise
  if run.main:
    if needed.stage.policies is not None:
      write_policies(run, needed.name, needed.stage.policies(run.config))
    done = {"fingerprint": fingerprint_of(reads), "reads": reads, "place": needed.place}
    done |= {"seconds": round(seconds + time.monotonic() - began, 3), "outputs": describe_artifacts(started.parent)}
    write_json(run.path(needed.name, "done.json"), done)
    started.unlink()


def _begun_with(run: Run, name: str) -> dict[str, Any] | None:
  """What a stage read that is finished, or begun and has files to go on from; None for any other."""
  done = run.done(name)
  if done is not None:
    return done["reads"]
  started = read_mark(run.path(name, "started.json"))
  if started is None:
    return None
  files = (file for path in artifact_paths(run.path(name)) for file in (path, *path.rglob("*")) if file.is_file())
  return started["reads"] if any(files) else None
