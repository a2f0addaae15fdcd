"""What stages read and write of a run, beside the files that serving reads too (`gr2_jax.runs.load`)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.runs.run import Run
from gr2_jax.data.schema import Slate
from gr2_jax.language.answers import direct_answer_length
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs.load import load_catalogue, load_context, load_log, load_slates, load_split, make_decoder, prompt_style
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.writers import MetricWriter

__all__ = [
  "direct_style",
  "load_catalogue",
  "load_context",
  "load_log",
  "load_policy",
  "load_slates",
  "load_split",
  "load_utilities",
  "make_decoder",
  "metric_writer",
  "most_new_tokens",
  "prompt_style",
  "pruned_style",
  "run_mesh",
  "slate_constraint",
  "stage_checkpoints",
  "stage_key",
]


def direct_style(run: Run) -> PromptStyle:
  """The same prompts, answered without reasoning."""
  return dataclasses.replace(prompt_style(run), direct=True)


def pruned_style(run: Run) -> PromptStyle:
  """How the pruned policy answers: as the one that was pruned."""
  return direct_style(run) if run.config.prune.init == "direct" else prompt_style(run)


def most_new_tokens(run: Run, slates: Sequence[Slate], vocabulary: Vocabulary, style: PromptStyle) -> int:
  """The limit of a completion: what the longest direct answer to these slates takes, or with reasoning that of `rl`."""
  if not style.direct:
    return run.config.rl.max_new_tokens
  return direct_answer_length(max(len(slate.candidates) for slate in slates), vocabulary, style)


def slate_constraint(run: Run, vocabulary: Vocabulary, style: PromptStyle | None = None) -> SlateConstraint | None:
  """The decoding constraint of SFT, RL and evaluation (the run's prompt style if none is given), or None for free answers under the
  strict parser.
  """
  return SlateConstraint(vocabulary, style or prompt_style(run)) if run.config.decoding.constraint == "slate" else None


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
