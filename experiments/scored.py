"""Trainings of scored policies that several stages do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from gr2_jax.errors import ConfigError
from gr2_jax.evaluation.held_out import likelihood_of_labels, quality_of_order
from gr2_jax.models.scorer import SlateScorer
from gr2_jax.objectives.distillation import beta_at
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.scored import ScoredSlates, make_answer, make_own_thoughts, mix_targets, open_scorer, train_scored
from gr2_jax.runs.teacher import ScoredTeacher
from gr2_jax.steps.opd import OpdConfig
from gr2_jax.steps.scored import ScoredLoss, make_target_loss
from gr2_jax.steps.scored_opd import make_reasoned_opd_loss, make_scored_opd_loss
from gr2_jax.steps.start import Start
from gr2_jax.training.mesh import put_replicated


def check_reward(config: ConfigDict, section: str) -> None:
  """Raises ConfigError where the rewards of scored answers are not the built-in ones."""
  if config[section].reward.fn is not None:
    raise ConfigError(f"--config.{section}.reward.fn: scored answers are judged by the built-in rewards; set it to None")


def check_free_reasons(config: ConfigDict, section: str) -> None:
  """Raises ConfigError where reasonings are distilled under a constraint, which distillation does not know."""
  if config.decoding.constraint == "facts":
    raise ConfigError(f"--config.decoding.constraint: 'facts', but {section} distils reasonings that may say anything; set it to none")


def train_on_targets(stage: StageContext, kind: str, batch_size: int) -> None:
  """Trains the stage's scored policy from random parameters on targets of a kind (see `mix_targets`); validation slates choose the step."""
  slates, validation = ScoredSlates.load(stage, "train"), ScoredSlates.load(stage, "validation")
  train_scored(
    stage,
    make_target_loss,
    slates=slates,
    learnt={"targets": mix_targets(stage.run, slates, kind)},
    batch_size=batch_size,
    score=likelihood_of_labels(validation.labels, validation.weights),
    validation=validation,
    reasoned=False,
  )


def learn_from_teacher(
  stage: StageContext,
  teacher: ScoredTeacher,
  config: OpdConfig,
  reward: RewardConfig,
  *,
  init: Start | None,
  batch_size: int,
  group: int,
  rankings: int,
  reasoned: bool,
  layers: Sequence[int] | None = None,
) -> None:
  """On-policy distillation of the stage's scored policy, from `init` or random parameters; validation slates choose the step.

  `group`: rankings of a slate, or reasonings with `rankings` after each. At once the teacher scores all training slates ahead of the first
  step; after a reasoning, which is the student's, it does so in the step. `layers`: of a student that is cut.
  """
  slates, validation = ScoredSlates.load(stage, "train"), ScoredSlates.load(stage, "validation")
  learnt, think = {"labels": slates.labels}, None
  frozen: tuple[Any, ...] = ()
  if reasoned:
    learnt["teacher_facts"] = teacher.facts
    think = make_own_thoughts(stage, group=group, layers=layers)
    frozen = (teacher.params, put_replicated(FactTables(teacher.run).codes.edges, stage.mesh))
  else:
    ask = make_answer(teacher.run, reasoned=False)
    learnt["teacher_scores"] = ask(teacher.params, dataclasses.replace(slates, facts=teacher.facts)).scores

  def make_loss(model: SlateScorer) -> ScoredLoss:
    if reasoned:
      opening = stage.vocabulary.special("think")
      return make_reasoned_opd_loss(model, open_scorer(teacher.run), opening, config, reward, rankings=rankings)
    return make_scored_opd_loss(model, config, reward, group=group)

  train_scored(
    stage,
    make_loss,
    slates=slates,
    learnt=learnt,
    batch_size=batch_size,
    score=quality_of_order(validation.labels, validation.weights),
    validation=validation,
    reasoned=reasoned,
    init=init,
    drop_out=False,  # the answers that are compared are the policy's own
    headline=("reverse_kl", "beta", "reward", "recall@1", "entropy"),
    think=think,
    layers=layers,
    frozen=frozen,
    at_step=lambda step: {"beta": beta_at(config.distillation, step, stage.options.training.steps)},
  )
