"""What is compiled for a pod: the steps that were asked for, each checked against the mesh before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.check import check_on_mesh, check_values
from experiments.estimates.data import count_data
from experiments.stage_steps import StageStep, list_steps
from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.models.config import PRESETS
from gr2_jax.runs.stages import needed_stages


class Plan(NamedTuple):
  """The steps of a config in the order in which they first run, and in `notes` sentences about what was assumed."""

  steps: tuple[StageStep, ...]
  notes: tuple[str, ...]


def plan(config: ConfigDict, mesh_shape: Mapping[str, int], asked: Sequence[str] = (), teacher: str | None = None) -> Plan:
  """The steps `asked` for, by their stage or as `STAGE: STEP`; without any, all that a run of the config compiles.

  `teacher`: the preset of the model that teaches in opd; None: as large as the student. Raises ConfigError, of a step that there is not,
  or of what does not divide over a mesh of this shape.
  """
  check_values(config, here=False)
  _check_teacher(config, teacher)
  counted = count_data(config)
  stages = [stage.name for stage in load_stages()]
  wanted = [part.strip() for part in asked] or [needed.name for needed in needed_stages(load_stages(), config)]
  named = [part.partition(":")[0].strip() for part in wanted]
  for name, part in zip(named, wanted, strict=True):
    if name not in stages:
      raise ConfigError(f"--step: {part!r} begins with no stage; choose one of {', '.join(stages)}, or STAGE: STEP")
  check_on_mesh(config, mesh_shape, named)
  by_stage = {name: list_steps(config, counted.sizes, name, teacher=teacher) for name in stages if name in named}
  chosen = tuple(step for name, steps in by_stage.items() for step in steps if _is_wanted(step, wanted))
  for part in wanted if asked else ():
    if not any(_is_wanted(step, [part]) for step in chosen):
      there = [f"{step.stage}: {step.name}" for step in by_stage[part.partition(":")[0].strip()]]
      raise ConfigError(f"--step: {part!r} compiles nothing with this config; its stage has {', '.join(there) or 'no compiled step'}")
  for step in chosen:
    check_rows(step, mesh_shape)
  return Plan(chosen, (*counted.notes, *_list_notes(config, chosen, teacher)))


def _check_teacher(config: ConfigDict, teacher: str | None) -> None:
  if teacher is not None and teacher not in PRESETS:
    raise ConfigError(f"--teacher: {teacher!r} is no preset; choose one of {', '.join(PRESETS)}")
  if teacher is not None and config.answer.form == "scored":
    raise ConfigError("--teacher: scored answers are taught by a model of the student's size; leave it out, or set answer.form to written")


def _is_wanted(step: StageStep, wanted: Sequence[str]) -> bool:
  full = f"{step.stage}: {step.name}"
  return any(" ".join(part.split()) in (step.stage, full) or part.replace(" ", "") == full.replace(" ", "") for part in wanted)


def check_rows(step: StageStep, mesh_shape: Mapping[str, int]) -> None:
  """Raises ConfigError for a batch of a step that does not divide over the mesh."""
  parts = mesh_shape["data"] * mesh_shape["fsdp"]
  for argument in step.arguments:
    for leaf in jax.tree.leaves(argument.arrays) if argument.place == "batch" else ():
      if leaf.shape[0] % parts:
        raise ConfigError(
          f"{step.stage}: {step.name} reads {leaf.shape[0]} rows at once, which do not divide over the {parts} parts of the mesh (data x "
          f"fsdp); make them a multiple of {parts}, data x fsdp a divisor of {leaf.shape[0]}, or leave the step out by --step"
        )


def _list_notes(config: ConfigDict, steps: Sequence[StageStep], teacher: str | None) -> list[str]:
  notes = []
  stages = {step.stage for step in steps}
  if config.answer.form == "written" and stages - {"tokenize", "midtrain", "slates"}:
    notes.append("Prompts and answers are as long as they may be, and loops over tokens go on to that length; real ones are shorter.")
  if "opd" in stages:
    notes.append(f"The teacher of opd is {teacher or 'as large as the student'}.")
  return notes
