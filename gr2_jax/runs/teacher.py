"""The teacher of on-policy distillation: the policy of another run, on the same vocabulary and semantic IDs."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError
from gr2_jax.errors import ConfigError
from gr2_jax.models.transformer import Decoder
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.fingerprints import config_to_json, hash_path, list_differences, value_at
from gr2_jax.runs.load import load_policy, load_slates, load_trained
from gr2_jax.runs.policies import PolicyRecord, find_policy
from gr2_jax.runs.run import Run
from gr2_jax.runs.scored import is_reasoned, open_scorer
from gr2_jax.semantic_ids.table import SemanticIDTable

# What decides vocabulary and semantic IDs, but for the data's own files, which may lie elsewhere for the teacher.
_SAME = ("seed", "tokenize")
_SAME_MARKET = ("data.market", "data.market_seed")  # where the data are synthetic


def check_teacher_config(config: ConfigDict) -> None:
  """Raises ConfigError when the teacher's run, where it has begun, was given other semantic IDs or another vocabulary than this config, or
  answers in another form.
  """
  directory = pathlib.Path(config.opd.teacher_run)
  if not (directory / "config.json").exists():
    return
  teacher = Run.open(directory)
  theirs, ours = (config_to_json(of) for of in (teacher.config, config))
  keys = (*_SAME, *(_SAME_MARKET if config.data.source == "synthetic" else ()))
  found = [line for key in keys for line in list_differences(value_at(theirs, key), value_at(ours, key), key)]
  if found:
    listed = "\n  ".join(found)
    raise ConfigError(
      f"--config.opd.teacher_run: {directory} has other semantic IDs or another vocabulary, so its policy cannot read this run's answers; "
      f"name a run with the same. What differs (teacher -> student):\n  {listed}"
    )
  _check_answers(config, teacher)


def load_teacher(stage: StageContext) -> tuple[Decoder, Any]:
  """(decoder, parameters on the mesh) of the policy that `config.opd` names.

  Raises DataError for other semantic IDs or another vocabulary, ConfigError for answers of another form.
  """
  teacher, record = _open_teacher(stage)
  theirs, ours = (config_to_json(of.config) for of in (teacher, stage.run))
  for section in ("prompt", "decoding"):
    for line in list_differences(theirs[section], ours[section], section):
      stage.progress.note(f"opd: the teacher was trained otherwise, {line}")
  policy = load_policy(teacher, record, stage.prompts, stage.mesh)
  return policy.decoder, policy.params


class ScoredTeacher(NamedTuple):
  """A scored policy of a `run`, whole, its parameters on the mesh, and the `facts [n, K, F]` that it reads of the training slates."""

  run: Run
  params: Any
  facts: np.ndarray


def load_scored_teacher(stage: StageContext) -> ScoredTeacher:
  """The scored policy that `config.opd` names, which reads its own run's facts of the slates that both runs have.

  Raises what `load_teacher` raises, and DataError for other training slates.
  """
  teacher, record = _open_teacher(stage)
  for name in ("slates", "evidence"):
    check_intact(teacher, name)
  if load_slates(teacher, stage.catalogue, "train") != stage.slates("train"):
    raise DataError(
      f"config.opd.teacher_run: {teacher.directory} has other training slates than {stage.run.directory}, of which its scored policy would "
      "know no facts; train teacher and student on the same slates (same data, seed and slates section)"
    )
  params = load_trained(teacher, open_scorer(teacher), stage.mesh, record.stage, record.checkpoints)
  return ScoredTeacher(teacher, params, FactTables(teacher).read("train"))


def _open_teacher(stage: StageContext) -> tuple[Run, PolicyRecord]:
  """The teacher's run and the record of its policy, which is intact and can be compared with this run's."""
  teacher = Run.open(stage.config.opd.teacher_run)
  check_same_tables(stage.run, teacher)
  _check_answers(stage.config, teacher)
  record = find_policy(teacher, stage.config.opd.teacher_stage)
  check_intact(teacher, record.stage, record.checkpoints)
  return teacher, record


def _check_answers(config: ConfigDict, teacher: Run) -> None:
  """Raises ConfigError unless the teacher's policies answer as this config's do."""
  theirs, ours = _describe_answers(teacher.config), _describe_answers(config)
  if theirs != ours:
    raise ConfigError(
      f"--config.opd.teacher_run: {teacher.directory} has answers that are {theirs}, and this config's are {ours}; name a run of the same, "
      "or set answer.form, prompt.direct, answer.texts and answer.past as there"
    )


def _describe_answers(config: ConfigDict) -> str:
  """Of policies that SFT and RL train."""
  if config.answer.form == "written":
    return "written"
  read = f"facts and texts of {config.answer.past} past items" if config.answer.texts else "facts"
  return f"scored {'after a reasoning' if is_reasoned(config) else 'at once'} by {read}"


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
