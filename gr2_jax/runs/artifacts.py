"""What a finished stage left, and whether it is still that: sizes and digests of its artifacts, kept in its `done.json`."""

import pathlib
from typing import Any

from gr2_jax.files import is_partial, write_json
from gr2_jax.runs.fingerprints import hash_path
from gr2_jax.runs.run import Run, RunError

_MARKS = ("started.json", "done.json")


def artifact_paths(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files and folders of a stage's folder, by name, without its marks and what was never whole."""
  return sorted(path for path in folder.iterdir() if path.name not in _MARKS and not is_partial(path))


def describe_artifacts(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """`{name: {"bytes", "sha256"}}` of the artifacts in a stage's folder."""
  return {path.name: _describe(path) for path in artifact_paths(folder)}


def _describe(path: pathlib.Path) -> dict[str, Any]:
  return {"bytes": _count_bytes(path), "sha256": hash_path(path)}


def check_intact(run: Run, stage: str, *names: str) -> None:
  """Raises RunError, naming the first of a finished stage's artifacts (or those of `names`) that is not what the stage left.

  Sizes are compared before contents, of which a gigabyte takes about a second.
  """
  outputs = (run.done(stage) or {}).get("outputs", {})
  if not isinstance(outputs, dict):
    return  # of a version that wrote down names alone
  chosen = {name: recorded for name, recorded in outputs.items() if not names or name in names}
  for name, recorded in chosen.items():
    path = run.path(stage, name)
    if not path.exists():
      raise _damage(run, stage, path, "is gone")
    if (found := _count_bytes(path)) != recorded["bytes"]:
      raise _damage(run, stage, path, f"is damaged: {found:,} bytes instead of {recorded['bytes']:,}")
  for name, recorded in chosen.items():
    if hash_path(path := run.path(stage, name)) != recorded["sha256"]:
      raise _damage(run, stage, path, "is damaged: its content is not what the stage wrote")


def refresh_digests(run: Run, stage: str, *names: str) -> None:
  """Writes into a finished stage's `done.json` what those artifacts are now, which were made again from the others."""
  done = run.done(stage)
  if done is None or not isinstance(done["outputs"], dict):
    return  # not finished, or of a version that wrote down names alone
  made = {path.name: _describe(path) for path in artifact_paths(run.path(stage)) if path.name in names}
  write_json(run.path(stage, "done.json"), done | {"outputs": dict(sorted((done["outputs"] | made).items()))})


def _damage(run: Run, stage: str, path: pathlib.Path, problem: str) -> RunError:
  return RunError(f"{path} {problem}; restore it, or remove {run.path(stage)} and run the stage {stage!r} again")


def _count_bytes(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() else sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
