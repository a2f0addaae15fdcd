"""What of a config cannot be used with the data of its run: what stages would find out after hours, looked for before any training."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from experiments.checks import list_faults
from experiments.stages.data import check_slates
from experiments.stages.tokenize import TokenizeOptions, count_item_inputs, train_vocabulary
from experiments.stages.traces import make_teacher
from gr2_jax.data.jsonl import read_slates
from gr2_jax.data.schema import SPLITS, DataError, Slate
from gr2_jax.data.splits import NextItem
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.facts import FACTS
from gr2_jax.language.prompts import PromptContext, PromptStyle, bare_length, present
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.runs import load
from gr2_jax.runs.context import Foreseen, StageContext
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import NeededStage, open_context
from gr2_jax.semantic_ids.sizes import choose_sizes
from gr2_jax.settings import read_record
from gr2_jax.teachers.sampling import Trace, rejection_traces
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

SAMPLE = 256  # slates whose prompts are written, and about which the teacher is asked
_MANY = math.log1p(100)  # of what is counted
_ANY_SCRIPT = 32_768  # text pieces that suffice where those of the config do not


@dataclasses.dataclass(frozen=True)
class ForeseenFacts:
  """Facts of any slate, all of one value, before the stage `evidence` has counted them: of the same lengths, not of the same content."""

  bins: int

  @property
  def codes(self) -> FactCodes:
    """In which this value lies above the lowest bucket."""
    return FactCodes(tuple(FACTS), np.tile(np.linspace(0, 2 * _MANY, self.bins + 1), (len(FACTS), 1)))

  def read_slate(self, slate: Slate, names: Sequence[str]) -> np.ndarray:
    """Facts `[K, F]` of a slate's candidates."""
    return np.full((len(slate.candidates), len(names)), _MANY)


def look_ahead(run: Run, stages: Sequence[NeededStage], progress: Progress, stop: StopSignal) -> None:
  """Raises ConfigError with all that `stages`, which are still to run, would come upon; the stage `data` is done."""
  chosen = [needed.stage for needed in stages]
  if not any(stage.foresee for stage in chosen):
    return
  foreseen, faults = _foresee(open_context(run, chosen[0], progress, stop))
  traces = next((stage for stage in chosen if stage.name == "traces"), None)
  if traces is not None and foreseen.slates["train"]:
    context = open_context(run, traces, progress, stop, foreseen)
    foreseen = dataclasses.replace(foreseen, traces=_ask_teacher(context))
  for stage in chosen:
    if stage.foresee is not None:
      faults += stage.foresee(open_context(run, stage, progress, stop, foreseen))
  if faults:
    raise list_faults(faults, "cannot be used with these data")


def _foresee(stage: StageContext) -> tuple[Foreseen, list[str]]:
  """What prompts will be made of, with a style that has room for them; and which settings had to be changed for that."""
  slates, faults = _foresee_slates(stage), list[str]()
  longest = max((len(slate.candidates) for of in slates.values() for slate in of), default=0)
  vocabulary, codes = _foresee_vocabulary(stage, longest, faults)
  style, facts = load.prompt_style(stage.run), ForeseenFacts(stage.config.evidence.bins)
  prompts = load.make_context(stage.run, stage.catalogue, stage.log, codes, vocabulary, facts)
  if stage.config.answer.form == "scored":
    return Foreseen(prompts, style, slates), faults  # slates are packed, whatever their text
  lengths = [bare_length(slate, prompts, style) for of in slates.values() for slate in _with_most_text(of, prompts, style)]
  need, limit = max(lengths, default=0), style.max_prompt_tokens
  if need > limit:
    short = sum(length > limit for length in lengths)
    faults.append(
      f"--config.prompt.max_prompt_tokens: {limit} is too short for {short:,} of {len(lengths):,} slates, of which the longest "
      f"takes {need} tokens without its history; raise it, or show fewer item_fields"
    )
    style = dataclasses.replace(style, max_prompt_tokens=need)
  return Foreseen(prompts, style, slates), faults


def _foresee_vocabulary(stage: StageContext, longest: int, faults: list[str]) -> tuple[Vocabulary, np.ndarray]:
  """The run's own, or where it is not made yet one of the same pieces; codes all alike `[N, levels]`, which change no length."""
  if stage.run.is_done("tokenize"):
    return load.load_vocabulary(stage.run), load.load_codes(stage.run)
  options = read_record(TokenizeOptions, stage.config, "tokenize")
  inputs = count_item_inputs(options, stage.catalogue)
  levels, size = choose_sizes(inputs, options.rqvae.levels, options.rqvae.codebook_size)
  levels += inputs.largest > size  # the level that is added for them
  shape = {"num_levels": levels, "codebook_size": size, "num_candidates": max(options.num_candidates, longest)}
  train = functools.partial(train_vocabulary, stage.config, stage.catalogue, **shape)
  try:
    vocabulary = train(text_pieces=options.text_pieces)
  except DataError as error:
    faults.append(f"--config.tokenize.{error}")
    vocabulary = train(text_pieces=_ANY_SCRIPT)
  return vocabulary, np.zeros((len(stage.catalogue), vocabulary.num_levels), int)


def _foresee_slates(stage: StageContext) -> dict[str, tuple[Slate, ...]]:
  """The run's slates by split; where they are yet to be built, some as an upstream ranker might make them."""
  if stage.run.is_done("slates"):
    return {split: stage.slates(split) for split in SPLITS}
  if stage.config.slates.source == "log":
    paths = {split: stage.run.path("data", f"slates_{split}.jsonl.gz") for split in SPLITS}
    slates = {split: read_slates(path, stage.catalogue) for split, path in paths.items() if path.exists()}
    check_slates(stage.config, slates)
    return slates
  requests = {"train": stage.split.validation, "validation": stage.split.validation, "test": stage.split.test}
  return {split: _imitate(of, stage) for split, of in requests.items()}


def _imitate(requests: Sequence[NextItem], stage: StageContext) -> tuple[Slate, ...]:
  """Slates of some of the requests: the target, and items at random that are not in the history."""
  rng, items = np.random.default_rng(stage.seed), stage.catalogue.items
  slates = []
  for index in rng.choice(len(requests), min(SAMPLE, len(requests)), replace=False).tolist():
    request, size = requests[index], stage.config.slates.size
    drawn = [items[row].id for row in rng.choice(len(items), min(size + len(request.history), len(items)), replace=False).tolist()]
    others = [item for item in drawn if item not in (*request.history, request.target)][: size - 1]
    if others:
      candidates = (request.target, *others)
      of_request = {"timestamp": request.timestamp, "segment": request.segment, "last_time": request.last_time}
      labels = (1,) + (0,) * len(others)
      slates.append(Slate(request.user, request.history, candidates, labels, **of_request))
  return tuple(slates)


def _with_most_text(slates: Sequence[Slate], prompts: PromptContext, style: PromptStyle) -> list[Slate]:
  """Those whose candidates take the most tokens."""

  def tokens(slate: Slate) -> int:
    return sum(len(prompts.item_tokens(row, style.item_fields, style)) for row in prompts.catalogue.to_rows(slate.candidates))

  return sorted(slates, key=tokens, reverse=True)[:SAMPLE]


def _ask_teacher(stage: StageContext) -> tuple[Trace, ...]:
  """The first attempts of the teacher at some training slates, accepted or not."""
  slates, rng = stage.slates("train"), np.random.default_rng(stage.seed)
  indices = rng.choice(len(slates), min(SAMPLE, len(slates)), replace=False).tolist()
  chosen = [slates[index] for index in indices]
  shown = [
    present(len(slate.candidates), stage.options.presentation, (stage.seed, index, 0)) for index, slate in zip(indices, chosen, strict=True)
  ]
  sampling = {"seed": stage.seed, "attempts": 1, "temperature": stage.options.temperature}
  traces = rejection_traces(chosen, shown, make_teacher(stage), stage.prompts, stage.style, **sampling)
  return tuple(dataclasses.replace(trace, slate_index=indices[trace.slate_index]) for trace in traces if trace.ranking is not None)
