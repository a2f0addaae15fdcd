"""The re-ranker that one calls: a trained run, and a full permutation of the candidates for every request."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.compression.cache import load_memory
from gr2_jax.compression.compressor import HistoryCompressor, check_compressor
from gr2_jax.data.schema import DataError, Item, Slate
from gr2_jax.language.answers import reference_tokens
from gr2_jax.language.prompts import PromptContext, PromptStyle, direct_opening, history_room, present, render_prompt
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.rerank import round_length
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.load import Policy, load_policy, open_context, prompt_style
from gr2_jax.runs.policies import PolicyRecord, find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.cold_start import ColdStart
from gr2_jax.serving.engine import Engine, Row, RowAnswer, default_batch_sizes, default_prompt_lengths, style_of
from gr2_jax.serving.request import MODES, Ranking, Request, RequestError, borda_scores, item_id, parse_request, upstream_ranking
from gr2_jax.training.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Options:
  """`mode` and `presentations` of requests that name none; `modes` that are served; `batch_size` rows at most are answered together.

  `modes` None: those that the policy was trained to answer in; `mode` None: the first of these that is served.

  `prompt_lengths`: to which prompts are padded (none given: half the longest prompt, and it whole; with compressed histories the usual
  prompt's in place of half the longest). `prefix_cache`: slates that stay on the device for reuse (0: none). The most candidates of a
  request (at most as many as the vocabulary has names), history items and presentations.
  """

  mode: str | None = None
  presentations: int = 1
  modes: tuple[str, ...] | None = None
  batch_size: int = 16
  prompt_lengths: tuple[int, ...] = ()
  prefix_cache: int = 0
  max_candidates: int | None = None
  max_history: int = 1000
  max_presentations: int = 8

  def __post_init__(self) -> None:
    if self.modes is not None and not self.modes:
      raise DataError(f"modes: none; choose from {', '.join(MODES)}")
    own = () if self.mode is None else ((self.mode, self.modes or MODES),)
    for mode, known in (*((mode, MODES) for mode in self.modes or ()), *own):
      if mode not in known:
        raise DataError(f"mode: {mode!r} is not known; choose from {', '.join(known)}")
    for name in ("batch_size", "presentations", "max_presentations"):
      if getattr(self, name) < 1:
        raise DataError(f"{name}: {getattr(self, name)} must be at least 1")

  def for_policy(self, trained: Sequence[str], *, force: bool = False) -> "Options":
    """With `modes` and `mode` filled in for a policy that was `trained` to answer in some modes, the first above all.

    Raises DataError for others, in which its orders mean nothing, unless to `force` them.
    """
    asked = dict.fromkeys([*(self.modes or ()), *([self.mode] if self.mode else [])])
    untrained = [mode for mode in asked if mode not in trained]
    if untrained and not force:
      raise DataError(f"mode: the policy was not trained to answer in the mode {untrained[0]!r}; choose from {', '.join(trained)}")
    modes = self.modes or tuple(dict.fromkeys([*trained, *asked]))
    first = next((mode for mode in trained if mode in modes), modes[0])
    return dataclasses.replace(self, modes=modes, mode=self.mode or first)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A request that passed all checks, rendered: one row for each presentation."""

  candidates: tuple[str, ...]
  mode: str
  rows: list[Row]
  fields: Mapping[str, Any]  # of the ranking, whatever it will be
  prepare_ms: float


class Reranker:
  """Ranks slates with one policy. Safe to call from several threads; the device works for one of them at a time."""

  def __init__(
    self,
    decoder: Decoder,
    params: Any,
    context: PromptContext,
    style: PromptStyle,
    *,
    max_new_tokens: int,
    options: Options = Options(),
    cold_start: ColdStart | None = None,
    compressor: HistoryCompressor | None = None,
  ):
    """`max_new_tokens`: the limit of reasoned answers. `compressor`: what shortens histories; soft tokens need parameters with a `memory`.
    All modes are served where the options name none, since nothing is known of the training.

    Raises DataError for a style without compact answers, and for reuse where the history comes first.
    """
    if style.answer != "compact":
      raise DataError(f"prompt.answer: serving decodes compact answers, which are permutations by construction, not {style.answer}")
    if options.prefix_cache and style.order != "candidates_first":
      raise DataError("prefix_cache: a slate can be reused only where it comes first; train with prompt.order='candidates_first'")
    names = context.vocabulary.num_candidates
    self._max_candidates = names if options.max_candidates is None else min(options.max_candidates, names)
    options = options.for_policy(("direct", "score", "reason") if style.direct else MODES)
    options = dataclasses.replace(options, max_candidates=self._max_candidates)
    lengths, rest_lengths = _padded_lengths(
      options, style, len(direct_opening(context.vocabulary, style)), compressor, self._max_candidates
    )
    self.options = options
    self._modes, self._mode = options.modes or (), options.mode or ""
    self.context, self.style, self.compressor = context, style, compressor
    self.engine = Engine(
      decoder,
      params,
      context.vocabulary,
      style,
      max_new_tokens=max_new_tokens,
      batch_sizes=default_batch_sizes(options.batch_size),
      prompt_lengths=lengths,
      prefix_cache=options.prefix_cache,
      rest_lengths=rest_lengths,
    )
    self._cold_start = cold_start

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
    lacks what is needed, naming the stages that left a policy, and what the constructor raises.
    """
    saved = Run.open(run)
    record = find_served(saved, stage)
    if compressor is not None:
      check_compressor(saved, compressor)
    policy = load_policy(saved, record, open_context(saved), mesh or make_mesh(devices=jax.devices()[:1]))
    return cls.of_policy(policy, compressor=compressor, options=options)

  @classmethod
  def of_policy(cls, policy: Policy, *, compressor: str | None = None, options: Options = Options(), force: bool = False) -> "Reranker":
    """The re-ranker of a policy that is loaded; several, for example with other compressors, share its parameters.

    Raises DataError for a mode that it was not trained to answer in, unless to `force` it.
    """
    run, context = policy.run, policy.context
    return cls(
      policy.decoder,
      policy.params | (load_memory(run) if compressor == "soft_tokens" else {}),
      context,
      prompt_style(run),
      max_new_tokens=run.config.decoding.max_new_tokens,
      options=options.for_policy(policy.record.trained, force=force),
      cold_start=ColdStart(run, context),
      compressor=HistoryCompressor.load(run, compressor, context) if compressor else None,
    )

  def warm_up(self, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Compiles all that requests can need, the likely first; `on_progress(done, all)` is called after each program.

    Requests may be ranked meanwhile, in a thread of their own, and once the re-ranker `is_ready` without waiting for the compiler.
    """
    for done, total in self.engine.warm_up((self._mode, *(mode for mode in self._modes if mode != self._mode))):
      if on_progress is not None:
        on_progress(done, total)
    if self._cold_start is not None:
      self._cold_start.warm_up()

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

  def prepare(self, request: Request) -> Prepared:
    """Checks and renders a request; raises RequestError."""
    began = time.perf_counter()
    mode = request.mode or self._mode
    presentations = self.options.presentations if request.presentations is None else request.presentations
    candidates = tuple(map(item_id, request.candidates))
    self._check(request, mode, presentations, candidates)
    context, past, new_items = self._context_for(request)
    slate = Slate(request.id or "", past, candidates, (0,) * len(candidates), timestamp=request.timestamp)
    style = style_of(mode, self.style)
    codes = context.codes[context.catalogue.to_rows(candidates)]
    rows, history = [], None
    for number in range(presentations):
      # The same orders for every slate of a size, so that its presentations are reused like the upstream one.
      shown = present(len(candidates), "shuffled" if number else "upstream", (0, len(candidates), number))
      order = shown.tolist()
      try:
        if history is None and self.compressor is not None:
          history = self.compressor(slate.history, context, history_room(slate, context, style))
        prompt = render_prompt(slate, order, context, style, None if history is None else history.tokens)
      except DataError as error:
        raise RequestError("too_long", str(error)) from None
      shared = prompt.tokens.index(context.vocabulary.special("history")) if self.options.prefix_cache else 0
      rows.append(Row(prompt.tokens, shared, reference_tokens(order, context.vocabulary, style, codes), shown))
    fields = {
      "history_tokens": prompt.history_tokens,
      "dropped_history": prompt.dropped_history if history is None else history.dropped,
      "compressor": None if history is None else history.compressor,
      **new_items,
    }
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
    limits = (("candidates", len(candidates), self._max_candidates), ("history", len(request.history), options.max_history))
    for name, size, most in (*limits, ("presentations", presentations, options.max_presentations)):
      if size > most:
        raise RequestError("too_many", f"{name}: {size} are more than {most}, the most that this server takes")
    if presentations < 1:
      raise RequestError("bad_request", f"presentations: {presentations} must be at least 1")

  def _context_for(self, request: Request) -> tuple[PromptContext, tuple[str, ...], dict[str, Any]]:
    """What the request's prompts are made of, its history without what is unknown, and the ranking's fields that tell of both.

    Known items keep their own text. A candidate of which nothing is known is an error, since none may be left out.
    """
    known = self.context.catalogue.rows
    given = reversed((*request.history, *request.candidates))
    cold = {item.id: item for item in given if isinstance(item, Item) and item.id not in known}
    asked = list(map(item_id, request.candidates))
    lost = next((item for item in asked if item not in known and item not in cold), None)
    if lost is not None:
      raise RequestError("unknown_item", f"unknown item {lost!r}; give its title, brand or categories beside its id, or leave it out")
    context = self.context
    guessed: Mapping[str, str] = {}
    try:
      if cold:
        context, guessed = self._extend(list(cold.values()))
    except DataError as error:
      if not cold.keys().isdisjoint(asked):
        raise RequestError("unknown_item", str(error)) from None
      cold = {}  # past items alone
    past = tuple(item for item in map(item_id, request.history) if item in known or item in cold)
    return context, past, {"unknown_history": len(request.history) - len(past), "assigned": tuple(cold), "guessed": guessed}

  def _extend(self, items: Sequence[Item]) -> tuple[PromptContext, Mapping[str, str]]:
    if self._cold_start is None:
      raise DataError(f"unknown item {items[0].id!r}; this re-ranker was made without a tokenizer for new items")
    return self._cold_start.extend(items)

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
    return Ranking(tuple(request.candidates[i] for i in order), scores, self._reasoning(answers[0].completion), **fields)

  def _reasoning(self, completion: list[int]) -> str | None:
    opening, closing = (self.context.vocabulary.special(name) for name in ("think", "/think"))
    if not completion or completion[0] != opening or closing not in completion:
      return None
    return self.context.vocabulary.decode(completion[1 : completion.index(closing)])


def find_served(run: Run, stage: str) -> PolicyRecord:
  """The policy that a stage left; raises RunError where there is none, or where it or what its prompts are made of is gone or damaged."""
  record = find_policy(run, stage)
  missing = [name for name in ("data", "tokenize") if not run.is_done(name)]
  if missing:
    raise RunError(f"{run.directory}: not finished: {', '.join(missing)}; run these stages first, or name another run")
  for name, artifacts in (("data", ()), ("tokenize", ()), (stage, (record.checkpoints,))):
    check_intact(run, name, *artifacts)
  return record


def _padded_lengths(
  options: Options, style: PromptStyle, opening: int, compressor: HistoryCompressor | None, max_candidates: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """To which lengths prompts are padded, and what follows a slate that is reused (none: the same); `opening`: tokens of a direct one's."""
  longest, given = style.max_prompt_tokens + opening, tuple(sorted(options.prompt_lengths))
  if given:
    if given[-1] < longest:
      raise DataError(f"prompt_lengths: the largest, {given[-1]}, must hold the longest prompt, which may have {longest} tokens")
    return given, ()
  if compressor is None:
    return default_prompt_lengths(longest), ()
  if options.prefix_cache:
    rest = compressor.budget + 2 + opening  # <history>, its tokens, <assistant>
    return default_prompt_lengths(longest), (round_length(rest),)
  # Slates are no shorter for it: a prompt with the most candidates may still be as long as it may be.
  return default_prompt_lengths(longest, longest - compressor.saving(max_candidates)), ()
