"""Reading a run directory: the one place that knows under which names the artifacts that a policy needs lie."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Protocol

from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr2_jax.data.cooccurrence import TransitionCounts
from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.splits import Split, leave_one_out
from gr2_jax.language.prompts import PromptContext, PromptStyle, mine_priming
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer


class RunFiles(Protocol):
  """A run directory: its resolved `config`, and where an artifact of a stage lies."""

  config: ConfigDict

  def path(self, stage: str, *names: str) -> pathlib.Path: ...


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """A run directory that is only read."""

  directory: pathlib.Path
  config: ConfigDict

  @classmethod
  def open(cls, directory: str | os.PathLike) -> "SavedRun":
    """The run at `directory`; raises DataError where there is none."""
    path = pathlib.Path(directory) / "config.json"
    if not path.exists():
      raise DataError(f"{directory} is no run (it has no config.json); give the --workdir of a run")
    return cls(path.parent, ConfigDict(json.loads(path.read_text(encoding="utf-8"))).lock())

  def path(self, stage: str, *names: str) -> pathlib.Path:
    """Where an artifact of a stage lies."""
    return self.directory.joinpath(stage, *names)

  def check_done(self, stages: tuple[str, ...]) -> None:
    """Raises DataError unless the stages are finished."""
    missing = [stage for stage in stages if not self.path(stage, "done.json").exists()]
    if missing:
      raise DataError(f"{self.directory}: not finished: {', '.join(missing)}; run these stages first, or name a stage that is trained")


def load_catalogue(run: RunFiles) -> Catalogue:
  return read_items(run.path("data", "items.jsonl.gz"))


def load_split(run: RunFiles, catalogue: Catalogue) -> Split:
  """Leave-one-out split of the whole log."""
  return leave_one_out(read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue), run.config.data.max_history)


def load_log(run: RunFiles, catalogue: Catalogue) -> tuple[History, ...]:
  """The interactions that counts and classical rankers may learn from.

  Logged slates come with histories that end before every request, so the whole log is past. Slates that are built here take the
  last two items of each user as their targets, so only the training part is.
  """
  if run.config.slates.source == "log":
    return read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue)
  return load_split(run, catalogue).train


def load_slates(run: RunFiles, catalogue: Catalogue, split: str) -> tuple[Slate, ...]:
  return read_slates(run.path("slates", f"{split}.jsonl.gz"), catalogue)


def load_context(run: RunFiles, catalogue: Catalogue, log: tuple[History, ...]) -> PromptContext:
  """All that prompts are made of."""
  style = prompt_style(run)
  return PromptContext(
    catalogue,
    SemanticIDTable.load(run.path("tokenize", "sids.npz")).codes,
    Vocabulary.load(run.path("tokenize", "vocabulary")),
    transitions=TransitionCounts.fit(log, catalogue) if "bought_after" in style.hints else None,
    priming=mine_priming(log, catalogue) if style.knowledge_priming else "",
  )


def prompt_style(run: RunFiles) -> PromptStyle:
  return PromptStyle(**run.config.prompt)


def make_decoder(run: RunFiles, vocabulary: Vocabulary) -> Decoder:
  return Decoder(preset(run.config.model.preset, vocabulary.size))


def load_policy(run: RunFiles, stage: str, decoder: Decoder, mesh: Mesh) -> Any:
  """Parameters at the end of a stage."""
  return load_params(decoder, Checkpointer(run.path(stage, "checkpoints")), mesh)
