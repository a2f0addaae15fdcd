"""The run directory: what was run, which stages are done, and proof that their inputs are still the same."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import UserError
from gr2_jax.files import write_json
from gr2_jax.runs.versions import compute_versions
from gr2_jax.data.schema import DataError



class RunError(UserError):
  """A run directory that cannot be used like this; the message names what differs and what to do."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run: `module.run(config, run, progress, stop)` writes the artifacts of `RUN/name/`.

  `reads`: top-level config keys that decide its artifacts. `inputs`: stages whose artifacts it reads.
  `files`: dotted config keys that may hold the path of an external file or folder it reads.
  `init`: the dotted config key that names the stage from whose checkpoint it starts, one more input. `uses`: inputs only where the config
  needs them for other stages (see `needed_stages`). `when`: the dotted config key of a stage that nothing else needs, not run where that is
  0. `runs`: pairs of dotted config keys, the directory of another run and its stage read.
  `format`: raised when the code writes other artifacts for the same inputs.
  """

  name: str
  module: str
  reads: tuple[str, ...]
  inputs: tuple[str, ...] = ()
  files: tuple[str, ...] = ()
  init: str = ""
  uses: tuple[str, ...] = ()
  when: str = ""
  runs: tuple[tuple[str, str], ...] = ()
  format: int = 1


@dataclasses.dataclass(frozen=True)
class Run:
  """An open run directory. Only the `main` process writes artifacts and metrics."""

  directory: pathlib.Path
  config: ConfigDict
  main: bool = True

  def path(self, stage: str, *names: str) -> pathlib.Path:
    """Where an artifact of a stage lies."""
    return self.directory.joinpath(stage, *names)

  def metrics_path(self, stage: str) -> pathlib.Path:
    """The JSONL file of a stage's metrics."""
    return self.directory / "metrics" / f"{stage}.jsonl"

  def done(self, stage: str) -> dict[str, Any] | None:
    """What a finished stage left: `fingerprint`, `reads`, `seconds`, `outputs`; None while it is not finished."""
    path = self.path(stage, "done.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

  def is_done(self, stage: Stage) -> bool:
    """Whether the stage is finished with the inputs that it would have now.

    Raises RunError when it is finished, or was begun, with others: nothing is overwritten.
    """
    marks = [self.path(stage.name, name) for name in ("done.json", "started.json")]
    mark = next((path for path in marks if path.exists()), None)
    if mark is None:
      return False
    before = json.loads(mark.read_text(encoding="utf-8"))
    now = self.inputs_of(stage)
    if before["reads"] != now:
      changed = "\n  ".join(list_differences(before["reads"], now))
      raise RunError(
        f"{self.path(stage.name)} was made from other inputs; nothing was overwritten. What changed (old -> new):\n  {changed}\n"
        "Undo the change, or use another --workdir"
      )
    gone = [name for name in before.get("outputs", ()) if not self.path(stage.name, name).exists()]
    if gone:
      folder = self.path(stage.name)
      raise RunError(f"{', '.join(gone)} of the finished stage {stage.name!r} is gone; restore it, or remove {folder} to make it again")
    return mark.name == "done.json"

  def inputs_of(self, stage: Stage) -> dict[str, Any]:
    """Everything that decides the stage's artifacts: config sections, format, fingerprints of inputs and of other runs, hashes of files."""
    config = config_to_json(self.config)
    runs = {directory: self.done_elsewhere(directory, of)["fingerprint"] for directory, of in stage.runs}
    return {
      "config": {key: config[key] for key in stage.reads},
      "format": stage.format,
      "inputs": {name: self.done(name)["fingerprint"] for name in stage.inputs},
      "files": {key: hash_path(path) for key in stage.files if (path := _existing_path(value_at(config, key))) is not None},
      **({"runs": runs} if runs else {}),
    }

  def done_elsewhere(self, directory_key: str, stage_key: str) -> dict[str, Any]:
    """What a finished stage of the other run left, both named by the config; raises RunError when it is not finished there."""
    directory, name = value_at(self.config, directory_key), value_at(self.config, stage_key)
    done = Run(pathlib.Path(directory), self.config).done(name)
    if done is None:
      raise RunError(
        f"--config.{directory_key}: {directory or 'no folder'} has no finished stage {name!r}; run that first, or name another run"
      )
    return done

  @contextmanager
  def open_stage(self, stage: Stage) -> Iterator[None]:
    """Marks the stage as begun, and as done when the body ends without an exception.

    The seconds in `done.json` are those of all sessions that worked on it. A stage that refused its input before it had a
    checkpoint counts as not begun, so that the input can be mended and the command given again.
    """
    reads = self.inputs_of(stage)
    started = self.path(stage.name, "started.json")
    seconds = json.loads(started.read_text(encoding="utf-8"))["seconds"] if started.exists() else 0.0
    if self.main:
      write_json(started, {"reads": reads, "seconds": seconds})
    began = time.monotonic()
    try:
      yield
    except BaseException as error:
      if self.main and isinstance(error, DataError) and not any(path.is_dir() for path in started.parent.iterdir()):
        started.unlink()
      elif self.main:
        write_json(started, {"reads": reads, "seconds": seconds + time.monotonic() - began})
      raise
    if self.main:
      self._finish(stage, reads, seconds + time.monotonic() - began)

  def take_over(self, stage: Stage, siblings: Iterable["Run"]) -> "Run | None":
    """Links the finished stage, with its metrics, of the first sibling that had the same inputs; returns that sibling.

    None where no sibling has it, or where the stage was begun here. The inputs of the stage must be finished here.
    """
    if self.path(stage.name).exists():
      return None
    now = self.inputs_of(stage)
    sibling = next((run for run in siblings if (done := run.done(stage.name)) is not None and done["reads"] == now), None)
    if sibling is None:
      return None
    for path in sibling.directory.glob("metrics/*.jsonl"):
      if path.stem == stage.name or path.stem.startswith(f"{stage.name}_"):
        _link(path, self.directory / "metrics" / path.name)
    _link(sibling.path(stage.name), self.path(stage.name))
    return sibling

  def _finish(self, stage: Stage, reads: dict[str, Any], seconds: float) -> None:
    folder = self.path(stage.name)
    outputs = sorted(path.name for path in folder.iterdir() if path.name != "started.json")
    done = {"fingerprint": _fingerprint(reads), "reads": reads, "seconds": round(seconds, 3), "outputs": outputs}
    write_json(folder / "done.json", done)
    (folder / "started.json").unlink()


def needed_stages(stages: Sequence[Stage], config: ConfigDict) -> list[Stage]:
  """The stages that lead to the last one or are asked for by this config, in order, each with all its inputs spelt out.

  Raises RunError for an `init` that is no stage, or that the config lacks.
  """
  try:
    inputs = {stage.name: stage.inputs + ((value_at(config, stage.init),) if stage.init else ()) for stage in stages}
  except KeyError as error:
    raise RunError(f"the config lacks a key that names the stage to start from: {error}; add it to the config file") from None
  wanted = [stage.name for stage in stages if stage.when and value_at(config, stage.when)]
  needed, ahead = set(), [stages[-1].name, *wanted]
  while ahead:
    name = ahead.pop()
    if name not in inputs:
      raise RunError(f"{name!r} is no stage to start from; there are: {', '.join(inputs)}")
    if name not in needed:
      needed.add(name)
      ahead += inputs[name]
  return [
    dataclasses.replace(stage, inputs=inputs[stage.name] + tuple(name for name in stage.uses if name in needed), init="", uses=())
    for stage in stages
    if stage.name in needed
  ]


def check_stages(run: Run, stages: Sequence[Stage], ahead: Iterable[pathlib.Path] = ()) -> None:
  """Raises RunError when the config lacks a key that a stage reads, or an input of a stage is neither done nor run before it.

  `ahead`: directories of other runs that will be finished by then.
  """
  keys = _flat_keys(config_to_json(run.config))
  ready: list[str] = []
  for stage in stages:
    unknown = [key for key in (*stage.reads, *stage.files) if key not in keys]
    if unknown:
      raise RunError(f"stage {stage.name!r} reads config.{', config.'.join(unknown)}, which this config lacks; add it to the config file")
    missing = [name for name in stage.inputs if name not in ready and run.done(name) is None]
    if missing:
      raise RunError(
        f"stage {stage.name!r} needs the artifacts of {', '.join(missing)}, not finished in {run.directory}; "
        f"run it first: --stages={','.join((*missing, stage.name))}"
      )
    for directory, of in stage.runs:
      if pathlib.Path(value_at(run.config, directory)) not in ahead:
        run.done_elsewhere(directory, of)
    ready.append(stage.name)


def open_run(workdir: str | os.PathLike, config: ConfigDict, command: Sequence[str], *, main: bool = True) -> Run:
  """Opens the run at `workdir`, or begins one there; writes `config.json`, `versions.json` and a line of `command.txt`.

  Raises RunError for a folder that is no run, for the run of another config (listing the keys that differ) of which a stage was
  begun, and for a config without a seed.
  """
  directory = pathlib.Path(workdir)
  resolved = config_to_json(config)
  if not isinstance(resolved.get("seed"), int):
    raise RunError("config.seed is missing; give the config an integer seed, so that the run can be repeated")
  run = Run(directory, config, main)
  if directory.exists() and not directory.is_dir():
    raise RunError(f"{directory} is a file; use another --workdir")
  saved = directory / "config.json"
  if saved.exists():
    if any(directory.glob("*/started.json")) or any(directory.glob("*/done.json")):
      _check_same_config(saved, resolved)
  elif directory.exists() and any(directory.iterdir()):
    raise RunError(f"{directory} is not empty and is no run (it has no config.json); use another --workdir")
  if main:
    _record(directory, resolved, command)
  return run


def read_config(directory: str | os.PathLike) -> ConfigDict:
  """The resolved config of a run, for programs and notebooks that read it."""
  path = pathlib.Path(directory) / "config.json"
  if not path.exists():
    raise RunError(f"{directory} is no run (it has no config.json); give the --workdir of a run")
  return ConfigDict(json.loads(path.read_text(encoding="utf-8"))).lock()


def list_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
  """`key: old -> new` for each leaf that differs between two nested dicts."""
  if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
    return [] if old == new else [f"{prefix}: {json.dumps(old)} -> {json.dumps(new)}"]
  lines = []
  for key in sorted({*old, *new}):
    path = f"{prefix}.{key}" if prefix else key
    if key not in old:
      lines.append(f"{path}: (none) -> {json.dumps(new[key])}")
    elif key not in new:
      lines.append(f"{path}: {json.dumps(old[key])} -> (none)")
    else:
      lines += list_differences(old[key], new[key], path)
  return lines


def hash_path(path: pathlib.Path) -> str:
  """SHA-256 of a file's content, or of the names and contents of all files in a folder."""
  if path.is_file():
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  inside = {str(p.relative_to(path)): hash_path(p) for p in path.rglob("*") if p.is_file()}
  return _fingerprint(inside)


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


def _check_same_config(saved: pathlib.Path, resolved: dict[str, Any]) -> None:
  try:
    before = json.loads(saved.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise RunError(f"{saved} is not JSON ({error}); restore it, or use another --workdir") from None
  differences = list_differences(before, resolved)
  if differences:
    listed = "\n  ".join(differences)
    raise RunError(f"{saved.parent} is the run of another config; use another --workdir. What differs (old -> new):\n  {listed}")


def _record(directory: pathlib.Path, resolved: dict[str, Any], command: Sequence[str]) -> None:
  versions_path = directory / "versions.json"
  versions = compute_versions()
  changes = []
  if versions_path.exists():
    changes = list_differences(json.loads(versions_path.read_text(encoding="utf-8")), versions)
  else:
    write_json(versions_path, versions)
  with (directory / "command.txt").open("a", encoding="utf-8") as file:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    file.write(f"{stamp} {shlex.join(command)}\n" + "".join(f"{stamp} # {change}\n" for change in changes))
  # Last, since it is what makes the folder a run; another one stands there only where no stage was begun with it.
  config_path = directory / "config.json"
  if not config_path.exists() or json.loads(config_path.read_text(encoding="utf-8")) != resolved:
    write_json(config_path, resolved)


def config_to_json(config: ConfigDict) -> dict[str, Any]:
  """As it stands in config.json: tuples are lists."""
  return _as_json(config.to_dict())


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))


def _fingerprint(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flat_keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
  """Dotted paths of all sections and leaves."""
  keys = []
  for key, value in config.items():
    keys.append(prefix + key)
    if isinstance(value, Mapping):
      keys += _flat_keys(value, f"{prefix}{key}.")
  return keys


def value_at(config: Mapping[str, Any], key: str) -> Any:
  """What stands at a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def _existing_path(value: Any) -> pathlib.Path | None:
  return pathlib.Path(value) if isinstance(value, str) and value and pathlib.Path(value).exists() else None
