"""The teacher of on-policy distillation: the policy of another run, on the same vocabulary and semantic IDs."""

import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError
from gr2_jax.errors import ConfigError
from gr2_jax.models.transformer import Decoder
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fingerprints import config_to_json, hash_path, list_differences, value_at
from gr2_jax.runs.load import load_policy
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.table import SemanticIDTable

# What decides vocabulary and semantic IDs, but for the data's own files, which may lie elsewhere for the teacher.
_SAME = ("seed", "tokenize")
_SAME_MARKET = ("data.market", "data.market_seed")  # where the data are synthetic


def check_teacher_config(config: ConfigDict) -> None:
  """Raises ConfigError when the teacher's run, where it has begun, was given other semantic IDs or another vocabulary than this config."""
  directory = pathlib.Path(config.opd.teacher_run)
  if not (directory / "config.json").exists():
    return
  theirs, ours = (config_to_json(of) for of in (Run.open(directory).config, config))
  keys = (*_SAME, *(_SAME_MARKET if config.data.source == "synthetic" else ()))
  found = [line for key in keys for line in list_differences(value_at(theirs, key), value_at(ours, key), key)]
  if found:
    listed = "\n  ".join(found)
    raise ConfigError(
      f"--config.opd.teacher_run: {directory} has other semantic IDs or another vocabulary, so its policy cannot read this run's answers; "
      f"name a run with the same. What differs (teacher -> student):\n  {listed}"
    )


def load_teacher(stage: StageContext) -> tuple[Decoder, Any]:
  """(decoder, parameters on the mesh) of the policy that `config.opd` names; raises DataError for other semantic IDs or vocabulary."""
  run, options = stage.run, stage.config.opd
  teacher = Run.open(options.teacher_run)
  check_same_tables(run, teacher)
  theirs, ours = (config_to_json(of.config) for of in (teacher, run))
  for section in ("prompt", "decoding"):
    for line in list_differences(theirs[section], ours[section], section):
      stage.progress.note(f"opd: the teacher was trained otherwise, {line}")
  record = find_policy(teacher, options.teacher_stage)
  check_intact(teacher, record.stage, record.checkpoints)
  policy = load_policy(teacher, record, stage.prompts, stage.mesh)
  return policy.decoder, policy.params


def check_same_tables(run: Run, teacher: Run) -> None:
  """Raises DataError unless both runs have the same semantic IDs for the same items, and the same vocabulary."""
  ours, theirs = (SemanticIDTable.load(of.path("tokenize", "sids.npz")) for of in (run, teacher))
  different = []
  if ours.codebook_size != theirs.codebook_size or not np.array_equal(ours.codes, theirs.codes):
    different.append("tokenize/sids.npz")
  if hash_path(run.path("tokenize", "vocabulary")) != hash_path(teacher.path("tokenize", "vocabulary")):
    different.append("tokenize/vocabulary")
  if different:
    raise DataError(
      f"config.opd.teacher_run: {teacher.directory} differs from {run.directory} in {' and '.join(different)}, so that its policy reads "
      "the same tokens as other items; train teacher and student on the same tokenizer (same data, seed and tokenize section)"
    )
