"""What decides a stage's artifacts, and what of it has changed since they were made."""

import pathlib
from collections.abc import Mapping
from typing import Any

from gr2_jax.runs.fingerprints import config_to_json, fill_added, hash_path, list_differences, value_at
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.stages import NeededStage, Stage
from gr2_jax.runs.starts import read_init


def inputs_of(run: Run, needed: NeededStage, fingerprints: Mapping[str, str] | None = None) -> dict[str, Any]:
  """Everything that decides the stage's artifacts: the config it reads, format, fingerprints of inputs and of other runs, hashes of files.

  `fingerprints`: those of inputs that are not finished yet.
  """
  stage, unused = needed.stage, _unused_keys(needed.stage, run)
  files = {key: _existing_path(value_at(run.config, key)) for key in stage.files if key not in unused}
  runs = {directory: done_elsewhere(run, directory, of)["fingerprint"] for directory, of in stage.runs}
  runs |= {key: mark["fingerprint"] for key in stage.files if key not in unused and (mark := _policy_elsewhere(run, key))}
  return {
    "config": config_of(run, stage),
    "format": stage.format,
    "inputs": {name: (run.done(name) or {"fingerprint": (fingerprints or {})[name]})["fingerprint"] for name in needed.inputs},
    "files": {key: hash_path(path) for key, path in files.items() if path is not None},
    **({"runs": runs} if runs else {}),
  }


def expected_inputs(run: Run, needed: NeededStage, fingerprints: Mapping[str, str]) -> dict[str, Any] | None:
  """`inputs_of` a stage that may run later; None while an input has no fingerprint yet, or another run's stage is not finished."""
  known = all(name in fingerprints or run.is_done(name) for name in needed.inputs)
  there = all(Run(pathlib.Path(value_at(run.config, key)), run.config).is_done(value_at(run.config, of)) for key, of in needed.stage.runs)
  return inputs_of(run, needed, fingerprints) if known and there else None


def config_of(run: Run, stage: Stage) -> dict[str, Any]:
  """The sections of the config that the stage reads, without the keys that decide nothing."""
  config = config_to_json(run.config)
  return _without({key: config[key] for key in stage.reads if key in config}, _unused_keys(stage, run))


def list_changes(run: Run, stage: Stage, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """`key: old -> new` of what decides the stage's artifacts now, against what did when it was begun; see `fill_added` for older runs."""
  unused = _unused_keys(stage, run)
  then, today = ({**reads, "config": _without(fill_added(reads["config"]), unused)} for reads in (before, now))
  if "inputs" in then and "inputs" in today:  # an older version may name one that decided nothing
    then["inputs"] = {name: of for name, of in then["inputs"].items() if name in today["inputs"]}
  return list_differences(then, today)


def done_elsewhere(run: Run, directory_key: str, stage_key: str) -> dict[str, Any]:
  """What a finished stage of the other run left, both named by the config; raises RunError when it is not finished there."""
  directory, name = value_at(run.config, directory_key), value_at(run.config, stage_key)
  done = Run(pathlib.Path(directory), run.config).done(name)
  if done is None:
    raise RunError(
      f"--config.{directory_key}: {directory or 'no folder'} has no finished stage {name!r}; run that first, or name another run"
    )
  return done


def _unused_keys(stage: Stage, run: Run) -> tuple[str, ...]:
  """Another run is what its fingerprint says, wherever it lies."""
  return (stage.unused(run.config) if stage.unused is not None else ()) + tuple(directory for directory, _ in stage.runs)


def _without(config: Mapping[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
  return {
    name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, Mapping) else value
    for name, value in config.items()
    if prefix + name not in keys
  }


def _policy_elsewhere(run: Run, key: str) -> dict[str, Any] | None:
  """What the finished stage left that a value `run:RUN/STAGE` names; None for other values. Raises RunError where it is not finished."""
  value = value_at(run.config, key)
  if not (isinstance(value, str) and value.startswith("run:")):
    return None
  init = read_init(value)
  done = Run.open(init.path).done(init.stage)
  if done is None:
    raise RunError(f"--config.{key}: {init.path} has no finished stage {init.stage!r}; run that first, or name another")
  return done


def _existing_path(value: Any) -> pathlib.Path | None:
  """The file or folder that a value names, by itself or as `hf:DIR`."""
  value = value.removeprefix("hf:") if isinstance(value, str) else value
  return pathlib.Path(value) if isinstance(value, str) and value and pathlib.Path(value).exists() else None
