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
from gr2_jax.files import is_partial, remove_partials, write_json
from gr2_jax.runs.fingerprints import config_to_json, fill_added, list_differences
from gr2_jax.runs.versions import compute_versions

LOCK = "lock"  # see runs/lock.py


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
    """The run at `directory` with its resolved config, to be read; raises RunError where there is none.

    A run that is older than a setting has the value by which it did what it did, see `fingerprints.ADDED`.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.exists():
      raise RunError(f"{directory} is no run (it has no config.json); give the --workdir of a run")
    return cls(path.parent, ConfigDict(fill_added(_read_config(path))).lock(), main=False)

  def path(self, stage: str, *names: str) -> pathlib.Path:
    """Where an artifact of a stage lies."""
    return self.directory.joinpath(stage, *names)

  def metrics_path(self, stage: str) -> pathlib.Path:
    """The JSONL file of a stage's metrics."""
    return self.directory / "metrics" / f"{stage}.jsonl"

  def done(self, stage: str) -> dict[str, Any] | None:
    """What a finished stage left: `fingerprint`, `reads`, `seconds`, `place`, `outputs` (see artifacts.py); None while it is not finished.

    Raises RunError where that cannot be read.
    """
    return read_mark(self.path(stage, "done.json"))

  def is_done(self, stage: str) -> bool:
    """Whether a stage is finished."""
    return self.path(stage, "done.json").exists()


def read_mark(path: pathlib.Path) -> dict[str, Any] | None:
  """The `done.json` or `started.json` of a stage, None where there is none; raises RunError, naming the stage, for one that is damaged."""
  folder = path.parent
  return read_object(path, f"restore it, or remove {folder} and run the stage {folder.name!r} again") if path.exists() else None


def read_object(path: pathlib.Path, remedy: str) -> dict[str, Any]:
  """A JSON object; raises RunError, with the remedy, for a file that holds anything else."""
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise RunError(f"{path} is damaged ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise RunError(f"{path} is damaged (it holds no JSON object); {remedy}")
  return value


def check_directory(directory: pathlib.Path) -> None:
  """Raises RunError for a file, and for a folder that holds something and is no run."""
  if directory.exists() and not directory.is_dir():
    raise RunError(f"{directory} is a file; use another --workdir")
  if directory.exists() and not (directory / "config.json").exists() and any(map(_is_foreign, directory.iterdir())):
    raise RunError(f"{directory} is not empty and is no run (it has no config.json); use another --workdir")


def _is_foreign(path: pathlib.Path) -> bool:
  """Whether a run that was killed before it had its config would not have left this."""
  return path.name not in (LOCK, "command.txt", "versions.json") and not is_partial(path)


def begin_run(workdir: str | os.PathLike, config: ConfigDict, command: Sequence[str], *, main: bool = True) -> Run:
  """Opens the run at `workdir`, or begins one there; writes `config.json`, `versions.json` and a line of `command.txt`.

  `config.json` holds the newest config, and `command.txt` lists what became of the one before: `check_stages` says whether the stages
  that are there may stay. Raises RunError for a folder that is no run, and for a config without a seed.
  """
  directory = pathlib.Path(workdir)
  resolved = config_to_json(config)
  if not isinstance(resolved.get("seed"), int):
    raise RunError("config.seed is missing; give the config an integer seed, so that the run can be repeated")
  check_directory(directory)
  if main:
    _record(directory, resolved, command)
    remove_partials(directory)
  return Run(directory, config, main)


def _record(directory: pathlib.Path, resolved: dict[str, Any], command: Sequence[str]) -> None:
  versions_path, config_path = directory / "versions.json", directory / "config.json"
  before = _read_config(config_path) if config_path.exists() else resolved
  changes = list_differences(before, resolved, "config")
  versions = compute_versions()
  if versions_path.exists():
    begun_with = read_object(versions_path, "remove it, so that it is written anew")
    changes += list_differences(begun_with, versions)
  else:
    write_json(versions_path, versions)
  with (directory / "command.txt").open("a", encoding="utf-8") as file:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    file.write(f"{stamp} {shlex.join(command)}\n" + "".join(f"{stamp} # {change}\n" for change in changes))
  # Last, since it is what makes the folder a run.
  if before != resolved or not config_path.exists():
    write_json(config_path, resolved)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  return read_object(path, "restore it, or use another --workdir")
