"""Scored policies with a run's files: what they read of slates, their trainings, and how they rank."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.slates import slate_labels
from gr2_jax.evidence.facts import LM_SCORE
from gr2_jax.models.config import preset
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.rl.draw import draw_indices
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.run import Run
from gr2_jax.runs.training import begin, train
from gr2_jax.settings import check_settings, setting
from gr2_jax.steps.scored import ScoredLoss
from gr2_jax.steps.update import make_update
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import jit_update, put_replicated

_SCORED = 512  # slates at a time
TARGETS = ("label", "tree", "mixture")


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
  """The form of answers. Raises ValueError."""

  form: str = setting(
    "written",
    "a permutation token by token, or scored: one pass gives every candidate a score, of which the answer is a Plackett-Luce draw",
    choices=("written", "scored"),
  )
  dropout: float = setting(0.1, "share of a scored slate's packed values that is left out in supervised training", low=0, below=1)
  evaluate_every: int = setting(50, "between validations of a scored policy, of which the best step is kept", unit="steps", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredSlates:
  """n slates as arrays: `facts [n, K, F]` as policies read them, `labels [n, K]` (-1 at padding), `weights [n]`."""

  facts: np.ndarray
  labels: np.ndarray
  weights: np.ndarray

  @classmethod
  def load(cls, stage: StageContext, split: str) -> "ScoredSlates":
    """The run's slates of a split."""
    slates = stage.slates(split)
    return cls(FactTables(stage.run).read(split), slate_labels(slates), np.array([slate.weight for slate in slates], np.float32))

  def __len__(self) -> int:
    return len(self.facts)

  def take(self, indices: np.ndarray) -> "ScoredSlates":
    """Some of them."""
    return ScoredSlates(self.facts[indices], self.labels[indices], self.weights[indices])

  def pack(self, indices: np.ndarray) -> PackedSlates:
    """Some of them, as the model reads them."""
    return pack_facts(self.facts[indices], self.labels[indices] >= 0)


def pack_facts(facts: np.ndarray, real: np.ndarray) -> PackedSlates:
  """Slates as the model reads them, by facts `[P, K, F]` alone; `real [P, K]` true at candidates."""
  nothing = np.zeros((len(real), 0), bool)
  no_content = np.zeros((*real.shape, 0), np.float32)
  return PackedSlates(facts, real, nothing, no_content, no_content[:, :0])


def open_scorer(run: Run, dropout: float | None = None) -> SlateScorer:
  """The run's scorer; `dropout` instead of that of the config."""
  codes = FactTables(run).codes
  return SlateScorer(
    preset(run.config.model.preset, 1),
    shape=(len(codes.names), codes.edges.shape[1] - 1),
    prior=codes.names.index(LM_SCORE) if LM_SCORE in codes.names else None,
    dropout=run.config.answer.dropout if dropout is None else dropout,
  )


def mix_targets(run: Run, slates: ScoredSlates, kind: str) -> np.ndarray:
  """What is learnt of the training slates, `[n, K]` in sums of 1: a kind of TARGETS.

  `label`: labels alone; `tree`: the softmax of the out-of-fold tree's scores; `mixture`: half and half. A slate without a positive label
  has no label to learn.
  """
  real = slates.labels >= 0
  gains = np.maximum(slates.labels, 0)
  gains = gains / np.maximum(gains.sum(axis=1, keepdims=True), 1)
  if kind == "label":
    return gains.astype(np.float32)
  soft = np.asarray(jax.nn.softmax(jnp.where(real, FactTables(run).teacher, OUT_OF_REACH), axis=-1))
  return np.where(real, soft if kind == "tree" else (gains + soft) / 2, 0).astype(np.float32)


def train_scored(
  stage: StageContext,
  key: str,
  make_loss: Callable[[SlateScorer], ScoredLoss],
  slates: ScoredSlates,
  learnt: Mapping[str, np.ndarray],
  batch_size: int,
  score: Callable[[np.ndarray], float],
  *,
  validation: ScoredSlates,
  init: Checkpointer | None = None,
  dropout: float | None = None,
  name: str = "checkpoints",
  headline: Sequence[str] = ("loss", "entropy"),
) -> None:
  """Trains the run's scorer, from `init` or random parameters, on slates and what is `learnt` of each (arrays `[n, ...]` by name).

  `key`: of the training's settings in the config. `score(scores of the validation slates [n, K])` chooses the step that is kept.
  """
  model, edges = open_scorer(stage.run, dropout), put_replicated(FactTables(stage.run).codes.edges, stage.mesh)
  optimizer, state, shardings = begin(stage, model, key, init)
  base = stage.key
  update = make_update(optimizer, make_loss(model), whole_batch=lambda step, batch: {"key": jax.random.fold_in(base, step)})
  drawn = draw_indices(len(slates), batch_size, stage.seed)

  def get_batch(_: Any) -> dict[str, Any]:
    indices = next(drawn)["slate"]
    return {"slates": slates.pack(indices), "weights": slates.weights[indices]} | {of: array[indices] for of, array in learnt.items()}

  step = batch_step(jit_update(update, stage.mesh, shardings, frozen=(edges,)), get_batch)
  rank = make_scores(model, np.asarray(FactTables(stage.run).codes.edges))
  best = (lambda params: score(rank(params, validation)), stage.config.answer.evaluate_every)
  train(stage, key, state, step, drawn, name=name, headline=headline, best=best)


def make_scores(model: SlateScorer, edges: np.ndarray) -> Callable[[Any, ScoredSlates], np.ndarray]:
  """`scores(params, slates) -> [n, K]`; those of the padding mean nothing."""
  compiled = jax.jit(lambda params, slates: model.apply({"params": params}, slates, edges))

  def scores(params: Any, slates: ScoredSlates) -> np.ndarray:
    size, found = min(_SCORED, len(slates)), []
    for start in range(0, len(slates), size):
      found.append(np.asarray(compiled(params, slates.pack(np.arange(start, start + size) % len(slates)))))
    return np.concatenate(found)[: len(slates)]

  return scores
