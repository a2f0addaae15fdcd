"""Reading a run directory: the one place that knows under which names the artifacts that a policy needs lie."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr2_jax.evidence.counts import TransitionCounts
from gr2_jax.data.disk_cache import DiskCache, content_key
from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.splits import Split, leave_one_out
from gr2_jax.evidence.patterns import mine_priming
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.models.transformer import Decoder
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer

POLICIES = ("sft", "opd", "rl", "direct", "prune")  # stages that leave a policy


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

  def is_done(self, stage: str) -> bool:
    """Whether a stage is finished."""
    return self.path(stage, "done.json").exists()

  def check_policy(self, stage: str) -> None:
    """Raises DataError unless `stage` leaves a policy and is finished, with all that its policy's prompts need."""
    if stage not in POLICIES:
      raise DataError(f"stage: {stage!r} leaves no policy; choose from {', '.join(POLICIES)}")
    missing = [name for name in ("data", "tokenize", stage) if not self.is_done(name)]
    if missing:
      trained = [name for name in POLICIES if self.is_done(name)]
      other = f"name a stage that is trained: {', '.join(trained)}" if trained else "name another run"
      raise DataError(f"{self.directory}: not finished: {', '.join(missing)}; run these stages first, or {other}")

  def compressors(self) -> tuple[str, ...]:
    """The variants by which the run has compressed histories; none where its stage `compress` is not finished."""
    return tuple(self.config.compressor.variants) if self.is_done("compress") else ()

  def check_compressor(self, variant: str) -> None:
    """Raises DataError unless the run has that variant."""
    known = self.compressors()
    if variant not in known:
      has = f"choose from {', '.join(known)}" if known else "it has none: run the stage compress with config.compressor.variants"
      raise DataError(f"compressor: {self.directory} has no {variant!r}; {has}")


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


def policy_checkpoints(run: RunFiles, stage: str) -> Checkpointer:
  """Those of a stage's policy; the pruned one is as it was cut where it had no recovery."""
  cut = stage == "prune" and not run.config.prune.steps
  return Checkpointer(run.path(stage, "pruned" if cut else "checkpoints"))


def policy_mode(run: RunFiles, stage: str) -> str:
  """How the policy of a stage was trained to answer: one of `request.MODES`."""
  if stage == "prune":
    stage = run.config.prune.init
  if stage == "direct":
    return "score" if run.config.direct.method == "scores" else "direct"
  return "direct" if prompt_style(run).direct else "reason"


@dataclasses.dataclass(frozen=True)
class Policy:
  """The policy of a `stage` of a run, and what its prompts are made of."""

  run: SavedRun
  stage: str
  decoder: Decoder
  params: Any
  context: PromptContext


def open_context(run: RunFiles) -> PromptContext:
  """`load_context` of the run's own catalogue and log."""
  catalogue = load_catalogue(run)
  return load_context(run, catalogue, load_log(run, catalogue))


def load_policy(run: SavedRun, stage: str, context: PromptContext, mesh: Mesh) -> Policy:
  """The policy at the end of a stage, which `check_policy` let pass."""
  decoder = make_decoder(run, context.vocabulary)
  if stage == "prune":
    decoder = prune_decoder(decoder, run.config.prune.layers)
  return Policy(run, stage, decoder, load_params(decoder, policy_checkpoints(run, stage), mesh), context)


def history_key(history: Sequence[str]) -> str:
  """Under which a compressed history is kept: equal histories, whosever they are, are compressed once."""
  return content_key(history)


def open_histories(run: RunFiles, variant: str, *, write: bool = False) -> DiskCache:
  """The histories that the stage `compress` wrote by a variant: by `history_key`, `{"tokens", "outcome", ..}`."""
  return DiskCache(run.path("compress", f"{variant}.jsonl"), write=write)


def memory_path(run: RunFiles) -> pathlib.Path:
  """Where the slots of all items lie, `[N * per_item, D]`."""
  return run.path("compress", "memory.npy")


def load_memory(run: RunFiles) -> dict[str, jax.Array]:
  """What a decoder's parameters must hold besides to read histories of slots."""
  return {"memory": jnp.asarray(np.load(memory_path(run)))}
