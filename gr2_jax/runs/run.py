"""The run directory: what was run with which config, and where its artifacts lie."""

import dataclasses
import json
import os
import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import UserError
from gr2_jax.files import write_json
from gr2_jax.runs.fingerprints import config_to_json, list_differences
from gr2_jax.runs.versions import compute_versions


class RunError(UserError):
  """A run directory that cannot be used like this; the message names what differs and what to do."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory, read or written. Only the `main` process writes artifacts and metrics."""

  directory: pathlib.Path
  config: ConfigDict
  main: bool = True

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> "Run":
    """The run at `directory` with its resolved config, to be read; raises RunError where there is none."""
    path = pathlib.Path(directory) / "config.json"
    if not path.exists():
      raise RunError(f"{directory} is no run (it has no config.json); give the --workdir of a run")
    return cls(path.parent, ConfigDict(json.loads(path.read_text(encoding="utf-8"))).lock(), main=False)

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

  def is_done(self, stage: str) -> bool:
    """Whether a stage is finished."""
    return self.path(stage, "done.json").exists()


def begin_run(workdir: str | os.PathLike, config: ConfigDict, command: Sequence[str], *, main: bool = True) -> Run:
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
