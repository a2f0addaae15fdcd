"""Reading a run's artifacts: the one place that knows under which names what policies need lies."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.market import Shelf
from gr2_jax.data.schema import SPLITS, Catalogue, DataError, History, Slate
from gr2_jax.data.splits import SPLITTERS, Split
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.counts import TransitionCounts
from gr2_jax.evidence.patterns import mine_priming
from gr2_jax.language.answers import direct_answer_length
from gr2_jax.language.hints import HINTS
from gr2_jax.language.prompts import FactReader, PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.adapters import Lora, LoraOptions
from gr2_jax.models.pruning import prune_decoder
from gr2_jax.models.transformer import Decoder, Model
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.policies import PolicyRecord
from gr2_jax.runs.run import Run
from gr2_jax.runs.starts import model_config
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.settings import read_record
from gr2_jax.steps.start import load_params
from gr2_jax.training.checkpoints import Checkpointer


def load_catalogue(run: Run) -> Catalogue:
  """The items, in the order of their rows."""
  return read_items(run.path("data", "items.jsonl.gz"))


def load_split(run: Run, catalogue: Catalogue) -> Split:
  """The split of the whole log, by `config.data.split`."""
  histories = read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue)
  return SPLITTERS[run.config.data.split](histories, run.config.data.max_history)


def load_log(run: Run, catalogue: Catalogue) -> tuple[History, ...]:
  """The interactions that counts may read, strictly before each request.

  Logged slates come with histories that end before every request, so the whole log is past. Slates that are built here by leave-one-out
  take the last two items of each user as their targets, so only the training part is. Split by time, every request and every interaction
  has its time, so counts go on to the request in the whole log; what is fitted without looking at times takes `load_split().train`.
  """
  if run.config.slates.source == "log" or run.config.data.split == "time":
    return read_interactions(run.path("data", "interactions.jsonl.gz"), catalogue)
  return load_split(run, catalogue).train


def load_slates(run: Run, catalogue: Catalogue, split: str) -> tuple[Slate, ...]:
  """The re-ranking slates of a split."""
  return read_slates(run.path("slates", f"{split}.jsonl.gz"), catalogue)


def load_utilities(run: Run, split: str) -> np.ndarray | None:
  """True utilities `[n, K]` of a synthetic market's own slates; None for real data and for slates that were built here."""
  path = run.path("data", f"utilities_{split}.npy")
  return np.load(path) if run.config.slates.source == "log" and path.exists() else None


def load_shelf(run: Run) -> Shelf | None:
  """What is true of a synthetic market's items, for its own slates; None for others, and for a market whose truth was not kept."""
  path = run.path("data", "shelf.npz")
  if run.config.slates.source != "log" or not path.exists():
    return None
  with np.load(path) as file:
    return dict(file)


def load_codes(run: Run) -> np.ndarray:
  """Semantic IDs `[N, levels]`."""
  return SemanticIDTable.load(run.path("tokenize", "sids.npz")).codes


def load_vocabulary(run: Run) -> Vocabulary:
  """The run's tokens."""
  return Vocabulary.load(run.path("tokenize", "vocabulary"))


@dataclasses.dataclass(frozen=True, eq=False)
class TabledFacts:
  """The facts of a run's own slates, from its tables, for prompts (a `FactReader`)."""

  run: Run
  catalogue: Catalogue

  @functools.cached_property
  def codes(self) -> FactCodes:
    """The quantiles of the facts that there are."""
    return FactTables(self.run).codes

  def read_slate(self, slate: Slate, names: Sequence[str]) -> np.ndarray:
    """Facts `[K, F]` of a slate's candidates; raises DataError for a slate of another run."""
    if slate not in self._rows:
      raise DataError(
        f"evidence: the tables hold the facts of the run's own slates, and no such slate of user {slate.user!r} is among them"
      )
    return self._rows[slate][: len(slate.candidates), [self._names.index(name) for name in names]]

  @functools.cached_property
  def _names(self) -> tuple[str, ...]:
    return FactTables(self.run).names

  @functools.cached_property
  def _rows(self) -> dict[Slate, np.ndarray]:
    """All facts `[K, F]` of each slate; slates that are alike in everything have the same."""
    tables = {split: FactTables(self.run).table(split) for split in SPLITS}
    slates = {split: load_slates(self.run, self.catalogue, split) for split in SPLITS}
    return {slate: row for split in SPLITS for slate, row in zip(slates[split], tables[split], strict=True)}


def load_context(run: Run, catalogue: Catalogue, log: tuple[History, ...], facts: FactReader | None = None) -> PromptContext:
  """All that prompts are made of; `facts` other than those of the run's own slates, from its tables."""
  if facts is None and prompt_style(run).facts:
    facts = TabledFacts(run, catalogue)
  return make_context(run, catalogue, log, load_codes(run), load_vocabulary(run), facts)


def make_context(
  run: Run, catalogue: Catalogue, log: tuple[History, ...], codes: np.ndarray, vocabulary: Vocabulary, facts: FactReader | None
) -> PromptContext:
  """All that prompts are made of, of these codes `[N, levels]`, tokens and facts."""
  style = prompt_style(run)
  return PromptContext(
    catalogue,
    codes,
    vocabulary,
    transitions=TransitionCounts.fit(log, catalogue) if any(HINTS[name].counts for name in style.hints) else None,
    priming=mine_priming(_untimed_log(run, catalogue, log), catalogue) if style.knowledge_priming else "",
    facts=facts,
  )


def _untimed_log(run: Run, catalogue: Catalogue, log: tuple[History, ...]) -> tuple[History, ...]:
  """What of a run's log may be read whole for every request."""
  return load_split(run, catalogue).train if run.config.data.split == "time" else log


def open_context(run: Run, facts: FactReader | None = None) -> PromptContext:
  """`load_context` of the run's own catalogue and log."""
  catalogue = load_catalogue(run)
  return load_context(run, catalogue, load_log(run, catalogue), facts)


def prompt_style(run: Run) -> PromptStyle:
  """How the run's prompts are written."""
  return PromptStyle(**run.config.prompt)


def style_of_mode(style: PromptStyle, mode: str) -> PromptStyle:
  """How prompts are written for answers in a mode. Scores are read behind an opening that is written where they are computed."""
  return dataclasses.replace(style, direct=style.direct if mode == "reason" else True)


def make_decoder(run: Run, vocabulary: Vocabulary, layers: Sequence[int] | None = None) -> Decoder:
  """The run's decoder, of these `layers` (None: whole)."""
  decoder = Decoder(model_config(run.config, vocabulary))
  return decoder if layers is None else prune_decoder(decoder, layers)


def make_lora(config: ConfigDict, get_vocabulary: Callable[[], Vocabulary]) -> Lora | None:
  """The adapters that a config's trainings train in place of all parameters; None where they train these. The vocabulary is asked for where
  it is needed.
  """
  options = read_record(LoraOptions, config, "model.lora")
  if not options.rank:
    return None
  rows = 0
  if options.train_embeddings:
    vocabulary = get_vocabulary()
    rows = vocabulary.size - vocabulary.new_token_start
  return Lora(options.rank, options.alpha, options.targets, rows)


def load_trained(run: Run, model: Model, mesh: Mesh, stage: str, name: str = "checkpoints") -> Any:
  """A model's parameters at the end of a stage of the run, or of the training `name` in it, on the mesh; see `steps.start.load_params`."""
  return load_params(model, Checkpointer(run.path(stage, name)), mesh)


def slate_constraint(run: Run, vocabulary: Vocabulary, style: PromptStyle) -> SlateConstraint | None:
  """The decoding constraint of all stages, or None for free answers under the strict parser."""
  return SlateConstraint(vocabulary, style) if run.config.decoding.constraint == "slate" else None


def most_new_tokens(run: Run, slates: Sequence[Slate], vocabulary: Vocabulary, style: PromptStyle) -> int:
  """The limit of a completion: what the longest direct answer to these slates takes, or with reasoning the run's."""
  if not style.direct:
    return run.config.decoding.max_new_tokens
  return direct_answer_length(max(len(slate.candidates) for slate in slates), vocabulary, style)


@dataclasses.dataclass(frozen=True)
class Policy:
  """A policy of a run, and what its prompts are made of."""

  run: Run
  record: PolicyRecord
  decoder: Decoder
  params: Any
  context: PromptContext


def load_policy(run: Run, record: PolicyRecord, context: PromptContext, mesh: Mesh) -> Policy:
  """The policy of a record of the run's manifest, its parameters on the mesh."""
  decoder = make_decoder(run, context.vocabulary, record.kept)
  return Policy(run, record, decoder, load_trained(run, decoder, mesh, record.stage, record.checkpoints), context)
