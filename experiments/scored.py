"""The supervised training of scored policies that several stages do."""

from gr2_jax.evaluation.held_out import likelihood_of_labels
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.scored import ScoredSlates, mix_targets, train_scored
from gr2_jax.steps.scored import make_target_loss


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
