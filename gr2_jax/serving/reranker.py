"""The re-ranker that one calls: a trained run, and a full permutation of the candidates for every request."""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.compression.cache import load_memory
from gr2_jax.compression.compressor import HistoryCompressor, check_compressor
from gr2_jax.evidence.facts import LM_SCORE
from gr2_jax.evidence.growing import Event
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.load import Policy, load_policy, open_context, prompt_style
from gr2_jax.runs.policies import PolicyRecord, find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.cold_start import ColdStart
from gr2_jax.serving.engine import RowAnswer
from gr2_jax.serving.options import Options
from gr2_jax.serving.request import Ranking, Request, RequestError, borda_scores, item_id, parse_event, parse_request, upstream_ranking
from gr2_jax.serving.scored import ScoredPolicy, Scorer, SlateFacts, load_scorer
from gr2_jax.serving.slate_cache import SlateIndex
from gr2_jax.serving.written import WrittenPolicy
from gr2_jax.training.mesh import make_mesh


class AnyEngine(Protocol):
  """What answers rows in batches; see `serving.engine.Engine`."""

  @property
  def index(self) -> SlateIndex:
    """Of the slates on the device."""

  def answer(self, rows: Sequence[Any], mode: str) -> list[RowAnswer]:
    """An answer for each row in a mode."""

  def warm_up(self, modes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Compiles every program of the modes; yields (done, all) after each."""

  def is_ready(self, mode: str) -> bool:
    """Whether any row in the mode can be answered without compiling."""


class ServedPolicy(Protocol):
  """What answers requests that passed the checks: a `WrittenPolicy` or a `ScoredPolicy`."""

  @property
  def options(self) -> Options:
    """With the modes that are served and its own mode filled in."""

  @property
  def max_candidates(self) -> int:
    """The most of a request."""

  @property
  def engine(self) -> AnyEngine:
    """What answers its rows."""

  @property
  def compressor(self) -> HistoryCompressor | None:
    """What shortens histories."""

  def warm_up(self) -> None:
    """Makes ready what the engine's programs are not all of."""

  def read(self, request: Request, mode: str, presentations: int) -> tuple[list[Any], dict[str, Any]]:
    """Rows for the engine, and the ranking's fields that are known by now; raises RequestError."""

  def reasoning(self, completion: list[int]) -> str | None:
    """The text of the reasoning that a completion begins with, None where it has none."""

  def add_events(self, events: Sequence[Event]) -> None:
    """Counts events, all or none; raises RequestError."""


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A request that passed all checks, as rows for the engine."""

  candidates: tuple[str, ...]
  mode: str
  rows: list[Any]
  fields: Mapping[str, Any]  # of the ranking, whatever it will be
  prepare_ms: float


class Reranker:
  """Ranks slates with one policy. Safe to call from several threads; the device works for one of them at a time."""

  def __init__(self, policy: ServedPolicy):
    self.policy, self.options = policy, policy.options
    self.engine, self.compressor = policy.engine, policy.compressor
    self._modes, self._mode = self.options.modes or (), self.options.mode or ""

  @classmethod
  def load(
    cls,
    run: str | os.PathLike,
    *,
    stage: str = "rl",
    compressor: str | None = None,
    options: Options = Options(),
    mesh: Mesh | None = None,
  ) -> "Reranker":
    """The policy that `stage` left in the run directory `run`, on one device unless a `mesh` says otherwise.

    `compressor`: one of the run's variants, by which histories are shortened (None: they stand in full). Raises RunError where the run
    lacks what is needed, naming the stages that left a policy, and what the policy's constructor raises.
    """
    saved = Run.open(run)
    record = find_served(saved, stage)
    if compressor is not None:
      _check_compressor(saved, record, compressor)
    return cls.of_policy(open_policies(saved, mesh)(record), compressor=compressor, options=options)

  @classmethod
  def of_policy(
    cls, policy: Policy | Scorer, *, compressor: str | None = None, options: Options = Options(), force: bool = False
  ) -> "Reranker":
    """The re-ranker of a policy that is loaded; several, for example with other compressors, share its parameters.

    Raises DataError for a mode that it was not trained to answer in, unless to `force` it, which a written policy alone can be.
    """
    if isinstance(policy, Scorer):
      if compressor is not None:
        _check_compressor(policy.run, policy.record, compressor)
      return cls(ScoredPolicy(policy, options))
    run, context = policy.run, policy.context
    return cls(
      WrittenPolicy(
        policy.decoder,
        policy.params | (load_memory(run) if compressor == "soft_tokens" else {}),
        context,
        prompt_style(run),
        max_new_tokens=run.config.decoding.max_new_tokens,
        options=options.for_policy(policy.record.trained, force=force),
        cold_start=None if context.facts else ColdStart(run, context),  # of a new item no fact is known
        compressor=HistoryCompressor.load(run, compressor, context) if compressor else None,
      )
    )

  def warm_up(self, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Compiles all that requests can need, the likely first; `on_progress(done, all)` is called after each program.

    Requests may be ranked meanwhile, in a thread of their own, and once the re-ranker `is_ready` without waiting for the compiler.
    """
    for done, total in self.engine.warm_up((self._mode, *(mode for mode in self._modes if mode != self._mode))):
      if on_progress is not None:
        on_progress(done, total)
    self.policy.warm_up()

  @property
  def is_ready(self) -> bool:
    """Whether a request that names no mode is ranked without compiling anything."""
    return self.engine.is_ready(self._mode)

  def rank(self, history: Sequence[Any], candidates: Sequence[Any], **fields: Any) -> Ranking:
    """The order of `candidates` for a user with this `history`; `fields` are the further ones of a `Request`. Raises RequestError."""
    return self.rank_batch([parse_request({"history": history, "candidates": candidates, **fields})])[0]

  def rank_batch(self, requests: Sequence[Request]) -> list[Ranking]:
    """A ranking for each request. Raises the RequestError of the first that cannot be ranked."""
    return self.rank_prepared([self.prepare(request) for request in requests])

  def add_events(self, events: Iterable[Any]) -> int:
    """Counts interactions that came after the run was made; returns how many.

    Each is a mapping with `user`, `item` and `timestamp` (Unix seconds). Facts of later requests are those of a log that holds them; of a
    user they come in time order, behind what the run's log has of the user. All are counted or, with a RequestError, none. Counts are
    copied once a call, so give many at once.
    """
    parsed = [parse_event(event, number) for number, event in enumerate(events, start=1)]
    self.policy.add_events(parsed)
    return len(parsed)

  def prepare(self, request: Request) -> Prepared:
    """Checks a request and makes its rows; raises RequestError."""
    began = time.perf_counter()
    mode = request.mode or self._mode
    presentations = self.options.presentations if request.presentations is None else request.presentations
    candidates = tuple(map(item_id, request.candidates))
    self._check(request, mode, presentations, candidates)
    rows, fields = self.policy.read(request, mode, presentations)
    return Prepared(candidates, mode, rows, fields, 1000 * (time.perf_counter() - began))

  def rank_prepared(self, requests: Sequence[Prepared]) -> list[Ranking]:
    """A ranking for each request, in batches of those with the same mode. Never raises: what fails gets the upstream order."""
    rankings: dict[int, Ranking] = {}
    for mode in {request.mode for request in requests}:
      places = [place for place, request in enumerate(requests) if request.mode == mode]
      began = time.perf_counter()
      try:
        answers = self.engine.answer([row for place in places for row in requests[place].rows], mode)
        failure = None
      except Exception as error:  # whatever the device or its compiler raises, the caller gets an order
        logging.exception("ranking failed; the upstream order is given")
        answers, failure = [], f"failed: {type(error).__name__}"
      model_ms = 1000 * (time.perf_counter() - began)
      for place in places:
        own, answers = answers[: len(requests[place].rows)], answers[len(requests[place].rows) :]
        rankings[place] = self._combine(requests[place], own, failure, model_ms)
    return [rankings[place] for place in range(len(requests))]

  def _check(self, request: Request, mode: str, presentations: int, candidates: tuple[str, ...]) -> None:
    options = self.options
    if mode not in self._modes:
      raise RequestError("unknown_mode", f"mode: {mode!r} is not served; choose from {', '.join(self._modes)}")
    if not candidates:
      raise RequestError("no_candidates", "candidates: none; give at least one")
    if len(set(candidates)) != len(candidates):
      twice = next(c for i, c in enumerate(candidates) if c in candidates[:i])
      raise RequestError("repeated_candidate", f"candidates: {twice!r} is repeated; list each candidate once")
    limits = (("candidates", len(candidates), self.policy.max_candidates), ("history", len(request.history), options.max_history))
    for name, size, most in (*limits, ("presentations", presentations, options.max_presentations)):
      if size > most:
        raise RequestError("too_many", f"{name}: {size} are more than {most}, the most that this server takes")
    if presentations < 1:
      raise RequestError("bad_request", f"presentations: {presentations} must be at least 1")

  def _combine(self, request: Prepared, answers: Sequence[RowAnswer], failure: str | None, model_ms: float) -> Ranking:
    fields = {"timings": {"prepare_ms": round(request.prepare_ms, 3), "model_ms": round(model_ms, 3)}, **request.fields}
    valid = [(answer.order, answer.scores) for answer in answers if answer.order is not None]
    if not valid:
      return upstream_ranking(request.candidates, failure or f"invalid answer: {answers[0].error}", **fields)
    size = len(request.candidates)
    if len(request.rows) == 1:
      order, computed = valid[0]
      scores = borda_scores(size) if computed is None else tuple(map(float, computed))
    else:
      points = np.zeros(size)
      for order, _ in valid:
        points[order] += borda_scores(size)
      order = np.argsort(-points, kind="stable")
      scores = tuple((points[order] / len(valid)).tolist())
    return Ranking(tuple(request.candidates[i] for i in order), scores, self.policy.reasoning(answers[0].completion), **fields)


def open_policies(run: Run, mesh: Mesh | None = None) -> Callable[[PolicyRecord], Policy | Scorer]:
  """`load(record)` of the run's policies, which share all but their parameters; on one device unless a `mesh` says otherwise."""
  devices = mesh or make_mesh(devices=jax.devices()[:1])
  facts = functools.cache(lambda: SlateFacts(run, devices))
  context = functools.cache(lambda: open_context(run, facts() if prompt_style(run).facts else None))

  @functools.cache
  def load(record: PolicyRecord) -> Policy | Scorer:
    return load_scorer(run, record, facts(), devices) if record.form == "scored" else load_policy(run, record, context(), devices)

  return load


def find_served(run: Run, stage: str) -> PolicyRecord:
  """The policy that a stage left; raises RunError where there is none, or where it or what it reads is gone or damaged."""
  record = find_policy(run, stage)
  reads_facts = record.form == "scored" or prompt_style(run).facts
  _check_stages(run, {"data": (), "tokenize": (), stage: (record.checkpoints,)} | ({"evidence": ()} if reads_facts else {}))
  if record.form == "scored" and LM_SCORE in FactTables(run).codes.names:
    _check_stages(run, {"midtrain": ("checkpoints",)})
  return record


def _check_stages(run: Run, needed: Mapping[str, tuple[str, ...]]) -> None:
  """Raises RunError unless the stages are finished, and their artifacts of these names (none: all) are what they left."""
  missing = [name for name in needed if not run.is_done(name)]
  if missing:
    raise RunError(f"{run.directory}: not finished: {', '.join(missing)}; run these stages first, or name another run")
  for name, artifacts in needed.items():
    check_intact(run, name, *artifacts)


def _check_compressor(run: Run, record: PolicyRecord, compressor: str) -> None:
  if record.form == "scored":
    raise RunError(
      f"compressor: {compressor!r} shortens histories in prompts, and the scored policy of {record.stage!r} reads none; leave it out"
    )
  check_compressor(run, compressor)
