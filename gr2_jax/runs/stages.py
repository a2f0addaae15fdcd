"""What a stage declares, which stages a config needs, and the life of a stage in a run directory."""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError
from gr2_jax.files import write_json
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fingerprints import config_to_json, fingerprint_of, flat_keys, hash_path, list_differences, value_at
from gr2_jax.runs.policies import PolicyRecord, write_policies
from gr2_jax.runs.run import Run, RunError


class Init(NamedTuple):
  """The dotted config key that names the stage from whose parameters a stage starts, and the stages that it may name."""

  key: str
  choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run: `run(context)` writes the artifacts of `RUN/name/`. Runner, check, evaluation and serving read all else from here.

  `reads`: top-level config keys that decide its artifacts. `inputs`: stages whose artifacts it reads.
  `files`: dotted config keys that may hold the path of an external file or folder it reads.
  `init`: one more input, named by the config. `uses`: inputs only where the config needs them for other stages (see `needed_stages`);
  `uses_policies`: those that leave a policy are among them. `when`: the dotted config key of a stage that nothing else needs, run only
  where that is true or not empty. `runs`: pairs of dotted config keys, the directory of another run and its stage read.
  `format`: raised when the code writes other artifacts for the same inputs.
  `check(config)` raises ConfigError naming the key of a value that the stage could not use. `batches(config)`: dotted key -> (rows at once,
  gradient steps and parts that they are cut into), which must divide over the mesh. `policies(config)`: what the stage leaves.
  """

  name: str
  run: Callable[[StageContext], None]
  reads: tuple[str, ...]
  inputs: tuple[str, ...] = ()
  files: tuple[str, ...] = ()
  init: Init | None = None
  uses: tuple[str, ...] = ()
  uses_policies: bool = False
  when: str = ""
  runs: tuple[tuple[str, str], ...] = ()
  format: int = 1
  check: Callable[[ConfigDict], None] | None = None
  batches: Callable[[ConfigDict], Mapping[str, tuple[int, int]]] | None = None
  policies: Callable[[ConfigDict], tuple[PolicyRecord, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class NeededStage:
  """A stage that a config needs, with all its inputs spelt out; `place`: its number among all stages."""

  stage: Stage
  inputs: tuple[str, ...]
  place: int

  @property
  def name(self) -> str:
    """The stage's."""
    return self.stage.name


def sort_stages(stages: Iterable[Stage]) -> list[Stage]:
  """The stages so that each comes after all that it may read, those that are free to choose by name. Raises RunError for a cycle."""
  by_name = {stage.name: stage for stage in stages}
  policies = tuple(name for name, stage in by_name.items() if stage.policies is not None)
  ahead = {
    name: {*stage.inputs, *(stage.init.choices if stage.init else ()), *stage.uses, *(policies if stage.uses_policies else ())} - {name}
    for name, stage in by_name.items()
  }
  ordered: list[Stage] = []
  while ahead:
    placed = {stage.name for stage in ordered}
    ready = sorted(name for name, inputs in ahead.items() if inputs & by_name.keys() <= placed)
    if not ready:
      raise RunError(f"stages wait for each other: {', '.join(sorted(ahead))}; see what they declare as inputs")
    ordered.append(by_name[ready[0]])
    del ahead[ready[0]]
  return ordered


def needed_stages(stages: Sequence[Stage], config: ConfigDict) -> list[NeededStage]:
  """The stages that lead to the last one or are asked for by this config, in order.

  Raises RunError for an `init` that is no stage to start from, or that the config lacks.
  """
  inputs = {stage.name: stage.inputs + _init_of(stage, config) for stage in stages}
  needed: set[str] = set()
  ahead = [stages[-1].name, *(stage.name for stage in stages if stage.when and value_at(config, stage.when))]
  while ahead:
    name = ahead.pop()
    if name not in inputs:
      raise RunError(f"{name!r} is no stage to read from; there are: {', '.join(inputs)}")
    if name not in needed:
      needed.add(name)
      ahead += inputs[name]
  policies = tuple(stage.name for stage in stages if stage.policies is not None)
  return [
    NeededStage(stage, tuple(dict.fromkeys((*inputs[stage.name], *(name for name in uses if name in needed)))), place)
    for place, stage in enumerate(stages)
    if stage.name in needed
    for uses in [stage.uses + (policies if stage.uses_policies else ())]
  ]


def _init_of(stage: Stage, config: ConfigDict) -> tuple[str, ...]:
  if stage.init is None:
    return ()
  try:
    name = value_at(config, stage.init.key)
  except KeyError:
    raise RunError(f"the config lacks {stage.init.key}, which names the stage to start from; add it to the config file") from None
  if name not in stage.init.choices:
    raise RunError(f"--config.{stage.init.key}: {name!r} is no stage to start from; choose {' or '.join(stage.init.choices)}")
  return (name,)


def check_stages(run: Run, stages: Sequence[NeededStage], ahead: Iterable[pathlib.Path] = ()) -> None:
  """Raises RunError when the config lacks a key that a stage reads, or an input of a stage is neither done nor run before it.

  `ahead`: directories of other runs that will be finished by then.
  """
  keys = flat_keys(config_to_json(run.config))
  ready: list[str] = []
  for needed in stages:
    stage = needed.stage
    unknown = [key for key in (*stage.reads, *stage.files) if key not in keys]
    if unknown:
      raise RunError(f"stage {stage.name!r} reads config.{', config.'.join(unknown)}, which this config lacks; add it to the config file")
    missing = [name for name in needed.inputs if name not in ready and not run.is_done(name)]
    if missing:
      raise RunError(
        f"stage {stage.name!r} needs the artifacts of {', '.join(missing)}, not finished in {run.directory}; "
        f"run it first: --stages={','.join((*missing, stage.name))}"
      )
    for directory, of in stage.runs:
      if pathlib.Path(value_at(run.config, directory)) not in ahead:
        _done_elsewhere(run, directory, of)
    ready.append(stage.name)


def is_finished(run: Run, needed: NeededStage) -> bool:
  """Whether the stage is finished with the inputs that it would have now.

  Raises RunError when it is finished, or was begun, with others: nothing is overwritten.
  """
  name = needed.name
  marks = [run.path(name, file) for file in ("done.json", "started.json")]
  mark = next((path for path in marks if path.exists()), None)
  if mark is None:
    return False
  before = json.loads(mark.read_text(encoding="utf-8"))
  now = inputs_of(run, needed)
  if before["reads"] != now:
    changed = "\n  ".join(list_differences(before["reads"], now))
    raise RunError(
      f"{run.path(name)} was made from other inputs; nothing was overwritten. What changed (old -> new):\n  {changed}\n"
      "Undo the change, or use another --workdir"
    )
  gone = [file for file in before.get("outputs", ()) if not run.path(name, file).exists()]
  if gone:
    raise RunError(f"{', '.join(gone)} of the finished stage {name!r} is gone; restore it, or remove {run.path(name)} to make it again")
  return mark.name == "done.json"


def inputs_of(run: Run, needed: NeededStage) -> dict[str, Any]:
  """Everything that decides the stage's artifacts: config sections, format, fingerprints of inputs and of other runs, hashes of files."""
  stage, config = needed.stage, config_to_json(run.config)
  runs = {directory: _done_elsewhere(run, directory, of)["fingerprint"] for directory, of in stage.runs}
  return {
    "config": {key: config[key] for key in stage.reads},
    "format": stage.format,
    "inputs": {name: (run.done(name) or {})["fingerprint"] for name in needed.inputs},
    "files": {key: hash_path(path) for key in stage.files if (path := _existing_path(value_at(config, key))) is not None},
    **({"runs": runs} if runs else {}),
  }


def _done_elsewhere(run: Run, directory_key: str, stage_key: str) -> dict[str, Any]:
  """What a finished stage of the other run left, both named by the config; raises RunError when it is not finished there."""
  directory, name = value_at(run.config, directory_key), value_at(run.config, stage_key)
  done = Run(pathlib.Path(directory), run.config).done(name)
  if done is None:
    raise RunError(
      f"--config.{directory_key}: {directory or 'no folder'} has no finished stage {name!r}; run that first, or name another run"
    )
  return done


@contextmanager
def open_stage(run: Run, needed: NeededStage) -> Iterator[None]:
  """Marks the stage as begun, and as done when the body ends without an exception.

  The seconds in `done.json` are those of all sessions that worked on it. A stage that refused its input before it had a
  checkpoint counts as not begun, so that the input can be mended and the command given again.
  """
  reads = inputs_of(run, needed)
  started = run.path(needed.name, "started.json")
  seconds = json.loads(started.read_text(encoding="utf-8"))["seconds"] if started.exists() else 0.0
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
    outputs = sorted(path.name for path in started.parent.iterdir() if path.name != started.name)
    done = {"fingerprint": fingerprint_of(reads), "reads": reads, "place": needed.place}
    write_json(run.path(needed.name, "done.json"), done | {"seconds": round(seconds + time.monotonic() - began, 3), "outputs": outputs})
    started.unlink()


def take_over(run: Run, needed: NeededStage, siblings: Iterable[Run]) -> Run | None:
  """Links the finished stage, with its metrics, of the first sibling that had the same inputs; returns that sibling.

  None where no sibling has it, or where the stage was begun here. The inputs of the stage must be finished here.
  """
  name = needed.name
  if run.path(name).exists():
    return None
  now = inputs_of(run, needed)
  sibling = next((other for other in siblings if (done := other.done(name)) is not None and done["reads"] == now), None)
  if sibling is None:
    return None
  for path in sibling.directory.glob("metrics/*.jsonl"):
    if path.stem == name or path.stem.startswith(f"{name}_"):
      _link(path, run.directory / "metrics" / path.name)
  _link(sibling.path(name), run.path(name))
  return sibling


def _existing_path(value: Any) -> pathlib.Path | None:
  return pathlib.Path(value) if isinstance(value, str) and value and pathlib.Path(value).exists() else None


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
