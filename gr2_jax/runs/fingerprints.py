"""What decides an artifact, as values that can be compared: configs as JSON, their differences, hashes of files."""

import copy
import hashlib
import json
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.models.sasrec import SasrecConfig
from gr2_jax.settings import to_section

ADDED: Mapping[str, Any] = {
  "data.split": "leave_one_out",
  "answer.texts": False,
  "answer.past": 10,
  "answer.text_dropout": 0.2,
  "slates.also": "none",
  "slates.sasrec": to_section(SasrecConfig()),
  "prompt.facts": [],
  "prompt.fact_form": "words",
  "prompt.max_words": None,
  "traces.source": "scripted",
  "opd.rankings": 8,
  "rl.anchor": 0.0,
  "rl.through": "whole",
  "answer.names": False,
  "model.init": "random",
  "model.dtype": "",
  "model.remat": None,
  "sft.init": "midtrain",
  "rl.truth_weight": 0.0,
  "rl.named_weight": 0.0,
  "tokenize.code_vectors": "",
  "midtrain.packed.chosen_by": "loss",
  "rl.slate": {"top": None, "diversity": 0.0, "price": 0.0, "small_brands": 0.0, "small_share": 0.25},
  "rl.feedback": {"share": 1.0, "source": "labels", "decay": 1.0, "weighing": "none", "clip": 10.0},
  "model.lora": {
    **{"rank": 0, "alpha": 16.0, "train_embeddings": True},
    "targets": ["q", "k", "v", "out", "gate", "up", "down"],
  },
  "evaluation.baselines": [],
  "evaluation.listwise": {
    **{"width": 64, "layers": 2, "heads": 2, "dropout": 0.2},
    **{"learning_rate": 5e-4, "weight_decay": 0.05, "batch": 64, "epochs": 40, "patience": 6},
  },
}
"""Settings that came after others of their section, and the value, as in config.json, by which an older run did what it did."""


def fill_added(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config, or the sections of one, with the settings that it is older than; sections that it lacks stay away."""
  filled = copy.deepcopy({**config})
  for key, value in ADDED.items():
    *path, name = key.split(".")
    section: Any = filled
    for part in path:
      section = section.get(part) if isinstance(section, dict) else None
    if isinstance(section, dict):
      section.setdefault(name, value)
  return filled


def config_to_json(config: ConfigDict) -> dict[str, Any]:
  """As it stands in config.json: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


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


def value_at(config: Mapping[str, Any], key: str) -> Any:
  """What stands at a dotted key."""
  for part in key.split("."):
    config = config[part]
  return config


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
  """Dotted paths of all sections and leaves."""
  keys = []
  for key, value in config.items():
    keys.append(prefix + key)
    if isinstance(value, Mapping):
      keys += flat_keys(value, f"{prefix}{key}.")
  return keys


def flat_leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted path -> value of all leaves; an empty section is one."""
  leaves: dict[str, Any] = {}
  for key, value in config.items():
    leaves |= flat_leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
  return leaves


def hash_path(path: pathlib.Path) -> str:
  """SHA-256 of a file's content, or of the names and contents of all files in a folder."""
  if path.is_file():
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  files = [inner for inner in path.rglob("*") if inner.is_file()]
  with ThreadPoolExecutor() as pool:  # hashing lets other threads run
    hashes = pool.map(hash_path, files)
    return fingerprint_of({str(inner.relative_to(path)): of for inner, of in zip(files, hashes, strict=True)})


def fingerprint_of(value: Any) -> str:
  """SHA-256 of a JSON value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
