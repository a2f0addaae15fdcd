"""Reading what earlier stages wrote: the one place that knows under which names artifacts lie."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.rundir import Run
from gr2_jax.data.cooccurrence import TransitionCounts
from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.splits import Split, leave_one_out
from gr2_jax.language.prompts import PromptContext, PromptStyle, mine_priming
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.writers import MetricWriter

SPLITS = ("train", "validation", "test")


def load_catalogue(run: Run) -> Catalogue:
  return read_items(run.path("data", "items.jsonl.gz"))


def load_split(run: Run, catalogue: Catalogue) -> Split:
  """Leave-one-out split of the whole log."""
  return leave_one_out(read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue), run.config.data.max_history)


def load_log(run: Run, catalogue: Catalogue) -> tuple[History, ...]:
  """The interactions that counts and classical rankers may learn from.

  Logged slates come with histories that end before every request, so the whole log is past. Slates that are built here take the
  last two items of each user as their targets, so only the training part is.
  """
  if run.config.slates.source == "log":
    return read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue)
  return load_split(run, catalogue).train


def load_slates(run: Run, catalogue: Catalogue, split: str) -> tuple[Slate, ...]:
  return read_slates(run.path("slates", f"{split}.jsonl.gz"), catalogue)


def load_context(run: Run, catalogue: Catalogue, log: tuple[History, ...]) -> PromptContext:
  """All that prompts are made of."""
  style = prompt_style(run)
  return PromptContext(
    catalogue,
    SemanticIDTable.load(run.path("tokenize", "sids.npz")).codes,
    Vocabulary.load(run.path("tokenize", "vocabulary")),
    transitions=TransitionCounts.fit(log, catalogue) if "bought_after" in style.hints else None,
    priming=mine_priming(log, catalogue) if style.knowledge_priming else "",
  )


def prompt_style(run: Run) -> PromptStyle:
  return PromptStyle(**run.config.prompt)


def slate_constraint(run: Run, vocabulary: Vocabulary) -> SlateConstraint | None:
  """The decoding constraint of SFT, RL and evaluation, or None for free answers under the strict parser."""
  return SlateConstraint(vocabulary, prompt_style(run)) if run.config.decoding.constraint == "slate" else None


def make_decoder(run: Run, vocabulary: Vocabulary) -> Decoder:
  return Decoder(preset(run.config.model.preset, vocabulary.size))


def run_mesh(run: Run) -> Mesh:
  return make_mesh(**run.config.mesh)


def stage_key(run: Run, stage: str) -> jax.Array:
  """A key of the run's seed for one stage, so that no two stages draw the same numbers."""
  return jax.random.fold_in(jax.random.key(run.config.seed), sum(stage.encode()))


def stage_checkpoints(run: Run, stage: str, name: str = "checkpoints") -> Checkpointer:
  return Checkpointer(run.path(stage, name))


def load_policy(run: Run, stage: str, decoder: Decoder, name: str = "checkpoints") -> Any:
  """Parameters at the end of a stage, or of the training `name` in it."""
  return load_params(decoder, stage_checkpoints(run, stage, name), run_mesh(run))


def metric_writer(run: Run, name: str) -> MetricWriter:
  project = run.config.wandb_project or None
  folder = "-".join(run.directory.parts[-2:])  # a sweep's runs differ in the folder above: VARIANT/seed_0
  return MetricWriter(run.metrics_path(name), wandb_project=project, run_name=f"{folder}-{name}", active=run.main)


def load_utilities(run: Run, split: str) -> np.ndarray | None:
  """True utilities `[n, K]` of a synthetic market's own slates; None for real data and for slates that were built here."""
  if run.config.slates.source != "log":
    return None
  path = run.path("data", f"utilities_{split}.npy")
  return np.load(path) if path.exists() else None
