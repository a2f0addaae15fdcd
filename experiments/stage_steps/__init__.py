"""The jitted steps of every stage with the shapes of their arguments, from a config and counts of its data, before any array exists."""

from ml_collections import ConfigDict

from experiments.stage_steps import fitted
from experiments.stage_steps.compress import compress
from experiments.stage_steps.policies import count_policies
from experiments.stage_steps.scored import ScoredSteps
from experiments.stage_steps.sizes import Sizes, make_vocabulary
from experiments.stage_steps.step import Argument, StageStep, count_looks
from experiments.stage_steps.written import WrittenSteps

__all__ = ["Argument", "Sizes", "StageStep", "count_looks", "count_policies", "list_steps", "make_vocabulary"]


def list_steps(config: ConfigDict, sizes: Sizes, stage: str, *, teacher: str | None = None) -> list[StageStep]:
  """The compiled steps of a stage, in the order in which they first run; none of one that compiles nothing that matters.

  `teacher`: the preset of the model that teaches in opd, where answers are written; None: it is as large as the student.
  """
  if found := {"tokenize": fitted.tokenize, "midtrain": fitted.midtrain, "slates": fitted.slates}.get(stage):
    return list(found(config, sizes))
  if stage == "compress":
    return list(compress(WrittenSteps(config, sizes)))  # scored answers read no history
  if stage not in ("sft", "opd", "rl", "direct", "prune", "evaluation"):
    return []
  steps = ScoredSteps(config, sizes) if config.answer.form == "scored" else WrittenSteps(config, sizes, teacher)
  return list(getattr(steps, stage)())
