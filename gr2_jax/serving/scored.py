"""Scored policies: the facts of requests, counted as the run's tables were, and the engine that scores their candidates by them."""

import bisect
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.data.schema import Catalogue, DataError, Item, Slate
from gr2_jax.data.slates import pad_histories
from gr2_jax.evidence.facts import LM_SCORE
from gr2_jax.evidence.growing import Event, GrowingLog
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.table import slate_features
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.load import load_catalogue, load_log, load_trained, load_vocabulary
from gr2_jax.runs.packed_midtraining import load_packed_candidate_scores
from gr2_jax.runs.policies import PolicyRecord
from gr2_jax.runs.run import Run
from gr2_jax.runs.scored import ItemTexts, make_answer_batch, open_scorer, read_thoughts
from gr2_jax.serving.cold_start import ItemPlaces, read_items
from gr2_jax.serving.engine import RowAnswer, default_batch_sizes, sort_scores
from gr2_jax.serving.options import Options
from gr2_jax.serving.request import Request, RequestError, item_id
from gr2_jax.serving.slate_cache import SlateIndex


@dataclasses.dataclass(frozen=True, eq=False)
class SlateItems:
  """What is known of the items of slates, N in a `catalogue`.

  `log_rows [N + 1]`: their rows in the counts, see `slate_features`. `near [N]`: rows of the run's catalogue by which the mid-trained model
  reads them. None: their own, since it is the run's catalogue.
  """

  catalogue: Catalogue
  arrays: ItemArrays
  texts: ItemTexts
  log_rows: np.ndarray | None = None
  near: np.ndarray | None = None

  def near_rows(self, ids: Sequence[str]) -> list[int]:
    """What the mid-trained model reads of items."""
    rows = self.catalogue.to_rows(ids)
    return rows if self.near is None else self.near[rows].tolist()


class SlateFacts:
  """The facts that a run's policies read, packed or in prompts, of any slate: those that the run's tables would have of it.

  `log`: what they count, which may grow. `items`: of the run's catalogue.
  """

  def __init__(self, run: Run, mesh: Mesh):
    tables = FactTables(run)
    self.catalogue = load_catalogue(run)
    self.codes, self.longest = tables.codes, tables.longest
    self.log = GrowingLog(load_log(run, self.catalogue), self.catalogue)
    arrays = ItemArrays.of(self.catalogue, np.load(run.path("tokenize", "vectors.npy")))
    self.items = SlateItems(self.catalogue, arrays, ItemTexts.load(run, self.catalogue))
    self.places = ItemPlaces(run, self.catalogue)
    self._max_history, self._lm_history = run.config.evidence.max_history, run.config.midtrain.max_history
    self._lm_scores = load_packed_candidate_scores(run, self.catalogue, mesh) if LM_SCORE in self.codes.names else None

  @property
  def history(self) -> int:
    """The latest items of a history that anything reads."""
    return max(self._max_history, self.items.texts.history, 0 if self._lm_scores is None else self._lm_history)

  def read_slate(self, slate: Slate, names: Sequence[str]) -> np.ndarray:
    """Facts `[K, F]` of a slate's candidates, for prompts (see `language.prompts.FactReader`); `lm_score` is not among those of prompts."""
    items = self.items
    return slate_features([slate], items.catalogue, self.log.counts, items.arrays, facts=names, max_history=self._max_history)[0]

  def with_new(self, known: Sequence[str], new: Sequence[Item]) -> tuple[SlateItems, dict[str, str]]:
    """What is known of some items of the catalogue and of new ones, and id -> one of GUESSES for those whose text has no known word.

    A new item has the facts of its text, names and price, counts of 0, and for the mid-trained model the place of the item with the nearest
    text, or of the one that is guessed. Raises DataError where the run's tokenizer is not there or reads text otherwise than it did.
    """
    rows, units = self.catalogue.to_rows(known), self.items.arrays.units
    vectors, guesses = self.places.place(new)
    near = (units[:-1] @ vectors.T).argmax(axis=0)
    for place, (_, row) in guesses.items():
      near[place] = row
    catalogue = Catalogue((*(self.catalogue.items[row] for row in rows), *new))
    arrays = self.items.arrays.of_others(catalogue.items, np.concatenate([units[rows], vectors]))
    texts = ItemTexts(catalogue, arrays.units[:, : self.items.texts.vectors.shape[1]], self.items.texts.history)
    log_rows = np.asarray([*rows, *[-1] * (len(new) + 1)])
    of_all = SlateItems(catalogue, arrays, texts, log_rows, np.asarray([*rows, *near]))
    return of_all, {new[place].id: kind for place, (kind, _) in guesses.items()}

  def pack(self, slates: Sequence[Slate], size: int, width: int, items: Sequence[SlateItems] = ()) -> PackedSlates:
    """`size` slates of `width` candidates as the scorer reads them: those given, and as many of them again as there is room for.

    `items`: of each slate (none given: the catalogue's).
    """
    items = items or [self.items] * len(slates)
    rows, lm_scores = np.arange(size) % len(slates), None
    if self._lm_scores is not None:
      past = pad_histories([of.near_rows(slate.history) for of, slate in zip(items, slates, strict=True)], self._lm_history)
      candidates = pad_histories([of.near_rows(slate.candidates) for of, slate in zip(items, slates, strict=True)], width)
      lm_scores = np.asarray(self._lm_scores(past[rows], candidates[rows]))
    alike: dict[int, list[int]] = {}
    for place, of in enumerate(items):
      alike.setdefault(id(of), []).append(place)
    packed = [
      self._pack_alike(items[places[0]], [slates[place] for place in places], width, None if lm_scores is None else lm_scores[places])
      for places in alike.values()
    ]
    order = np.argsort([place for places in alike.values() for place in places])[rows]
    return PackedSlates(*(np.concatenate(parts)[order] for parts in zip(*packed, strict=True)))

  def _pack_alike(self, items: SlateItems, slates: Sequence[Slate], width: int, lm_scores: np.ndarray | None) -> PackedSlates:
    """Slates of the same items, `lm_scores [n, width]`."""
    own, latest = items.texts.rows(slates)
    longest = own.shape[1]
    candidates = np.full((len(slates), width), -1, np.int32)
    candidates[:, :longest] = own
    facts = np.zeros((*candidates.shape, len(self.codes.names)), np.float32)
    facts[:, :longest] = slate_features(
      slates,
      items.catalogue,
      self.log.counts,
      items.arrays,
      facts=self.codes.names,
      max_history=self._max_history,
      lm_scores=None if lm_scores is None else lm_scores[:, :longest],
      log_rows=items.log_rows,
    )
    return items.texts.pack(facts, candidates, latest)


class ScoredRow(NamedTuple):
  """A slate of a request, and what is known of its items."""

  slate: Slate
  items: SlateItems


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A scored policy of a run, loaded, and the facts that it reads."""

  run: Run
  record: PolicyRecord
  model: SlateScorer
  params: Any
  facts: SlateFacts


def load_scorer(run: Run, record: PolicyRecord, facts: SlateFacts, mesh: Mesh) -> Scorer:
  """The scored policy of a record of the run's manifest, its parameters on the mesh."""
  model = open_scorer(run, layers=record.kept)
  return Scorer(run, record, model, load_trained(run, model, mesh, record.stage, record.checkpoints), facts)


class ScoredEngine:
  """Scores slates in batches padded to one of `batch_sizes` (ascending) and to `max_candidates`; see `Engine`, whose place it takes.

  Facts are computed on the host, for a batch at once. One thread at a time is served.
  """

  def __init__(self, scorer: Scorer, *, batch_sizes: Sequence[int], max_candidates: int):
    self.batch_sizes, self.max_candidates = tuple(batch_sizes), max_candidates
    self.index = SlateIndex(0)  # no slate stays on the device: one pass reads it whole
    self._params, self._facts = scorer.params, scorer.facts
    self._lock, self._ready, self._warming = threading.Lock(), set[int](), False
    self._score = make_answer_batch(scorer.run, reasoned=scorer.record.mode == "reason", layers=scorer.record.kept)

  def answer(self, rows: Sequence[ScoredRow], mode: str) -> list[RowAnswer]:
    """An answer for each slate; `mode` can only be that of the policy."""
    answers: list[RowAnswer] = []
    for start in range(0, len(rows), self.batch_sizes[-1]):
      batch = rows[start : start + self.batch_sizes[-1]]
      with self._lock:
        answers += self._answer_batch(batch, self._choose(len(batch)))
    return answers

  def warm_up(self, modes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Compiles the programs of every batch size; yields (done, all) after each. Slates may be answered meanwhile.

    First come those of one slate and of a full batch. Until all are there, a batch whose own is missing is padded to a larger one.
    """
    sizes = dict.fromkeys((1, self.batch_sizes[-1], *self.batch_sizes))
    anything = ScoredRow(Slate("", (), (self._facts.catalogue.items[0].id,), (0,)), self._facts.items)
    self._warming = True
    try:
      for done, size in enumerate(sizes, start=1):
        self._answer_batch([anything], size)
        yield done, len(sizes)
    finally:
      self._warming = False

  def is_ready(self, mode: str) -> bool:
    """Whether any slate can be answered without compiling."""
    return {1, self.batch_sizes[-1]} <= self._ready

  def _choose(self, rows: int) -> int:
    """The smallest batch size that holds so many rows; while programs are compiled, of those that are there."""
    sizes = self.batch_sizes[bisect.bisect_left(self.batch_sizes, rows) :]
    return next((size for size in sizes if size in self._ready), sizes[0]) if self._warming else sizes[0]

  def _answer_batch(self, rows: Sequence[ScoredRow], size: int) -> list[RowAnswer]:
    slates, items = zip(*rows, strict=True)
    packed = self._facts.pack(slates, size, self.max_candidates, items)
    found, thoughts = jax.device_get(self._score(self._params, packed))
    self._ready.add(size)
    texts = read_thoughts(thoughts, size)
    return [_to_answer(scores[: len(slate.candidates)], text) for slate, scores, text in zip(slates, found, texts, strict=False)]


def _to_answer(scores: np.ndarray, thought: list[int]) -> RowAnswer:
  """The order of scores `[K]` of candidates in the upstream order, with log-probabilities of being first, after a reasoning."""
  answer = sort_scores(np.arange(len(scores)), scores)._replace(completion=thought)
  # Normalised when they are sorted, since rounding makes equal what was not.
  return answer if answer.scores is None else answer._replace(scores=answer.scores - np.logaddexp.reduce(answer.scores))


class ScoredPolicy:
  """A policy that scores candidates by their facts, as a `Reranker` serves it: every order in which a slate is shown has one answer."""

  compressor = None

  def __init__(self, scorer: Scorer, options: Options = Options()):
    """Raises DataError for a mode other than the policy's, and for what is said of prompts."""
    for name in ("prefix_cache", "prompt_lengths"):
      if getattr(options, name):
        raise DataError(f"{name}: a scored policy reads no prompt; leave it out")
    self.options = options = options.for_policy(scorer.record.trained)
    self.max_candidates = scorer.facts.longest if options.max_candidates is None else options.max_candidates
    self.engine = ScoredEngine(scorer, batch_sizes=default_batch_sizes(options.batch_size), max_candidates=self.max_candidates)
    self._facts, self._vocabulary = scorer.facts, load_vocabulary(scorer.run)

  def warm_up(self) -> None:
    """Fits what the first new item would wait for; where nothing can be placed, requests will be told."""
    with contextlib.suppress(DataError):
      self._facts.places.place([self._facts.catalogue.items[0]])

  def read(self, request: Request, mode: str, presentations: int) -> tuple[list[ScoredRow], dict[str, Any]]:
    """The request as one slate, however often it is to be shown, and the ranking's fields that tell of its items; raises RequestError."""
    facts, candidates = self._facts, tuple(map(item_id, request.candidates))
    known = [item for item in dict.fromkeys((*map(item_id, request.history), *candidates)) if item in facts.catalogue.rows]
    items, past, fields = read_items(request, facts.catalogue.rows, facts.items, lambda new: facts.with_new(known, new))
    return [ScoredRow(request.to_slate(past), items)], fields | {"dropped_history": max(len(past) - facts.history, 0)}

  def add_events(self, events: Sequence[Event]) -> None:
    """Counts events, for all policies of the run that share its facts; raises RequestError."""
    known = self._facts.catalogue.rows
    lost = next((number for number, event in enumerate(events) if event.item not in known), None)
    if lost is not None:
      told = f"event {lost + 1}: unknown item {events[lost].item!r}; the run counts items of its catalogue alone; leave it out"
      raise RequestError("unknown_item", told)
    try:
      self._facts.log.add(events)
    except DataError as error:
      raise RequestError("bad_request", str(error)) from None

  def reasoning(self, completion: list[int]) -> str | None:
    """The text of a reasoning, which came before the scores; None where there is none."""
    return (
      self._vocabulary.decode(completion[:-1] if completion[-1] == self._vocabulary.special("/think") else completion)
      if completion
      else None
    )
