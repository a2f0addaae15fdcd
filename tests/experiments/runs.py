"""Helpers of the tests that run the program: configs, run directories, and files that are broken on purpose."""

import json
import pathlib
import shutil

from experiments.flags import load_config

ROOT = pathlib.Path(__file__).parents[2]


def tiny_config(**changes):
  """`configs/quickstart.py:tiny` with changes by dotted key, written with __ for the dot."""
  config = load_config(str(ROOT / "configs" / "quickstart.py") + ":tiny")
  with config.unlocked():
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config


def continue_from(tiny_run, workdir, config, stages):
  """A run of `config` at `workdir` of which `stages` are done, as they are in `tiny_run`; `config` differs in later stages only."""
  workdir.mkdir(parents=True)
  for stage in stages:
    shutil.copytree(tiny_run / stage, workdir / stage)
  (workdir / "config.json").write_text(json.dumps(config.to_dict()))
  return workdir


def hash_files(directory):
  """Path -> (content, time of the last change) of all files."""
  return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(directory.rglob("*")) if path.is_file()}


def edit_line(path, number, change):
  """Replaces line `number` (from 1) of a JSONL file: `change` is the new text, or fields to set."""
  lines = path.read_text(encoding="utf-8").splitlines()
  lines[number - 1] = change if isinstance(change, str) else json.dumps(json.loads(lines[number - 1]) | change)
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
