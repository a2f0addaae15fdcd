"""A run's policies asked about slates: in each mode, in several presentations, with what an answer costs."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.reasons import CheckedReason, check_reasons, describe_reason
from gr2_jax.evaluation.results import AVERAGED, Answers, RankerAnswers
from gr2_jax.language.answers import NOT_FINITE
from gr2_jax.language.prompts import present
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.rerank import RankedSlates, append_reasoning, pad_shown, rank_slates, render_prompts
from gr2_jax.rollout.scoring import make_score, rank_by_scores, read_scores, score_in_batches
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.load import TabledFacts, most_new_tokens, style_of_mode
from gr2_jax.runs.scored import Answer, ScoredSlates

# rank(params, slates, shown, on_progress) -> RankedSlates
RankFn = Callable[..., RankedSlates]


def make_rank(stage: StageContext, decoder: Decoder, mode: str, slates: Sequence[Slate]) -> RankFn:
  """Greedy answers in a mode, or one-pass scores; compiled once for all policies of the decoder and for slates no longer than these."""
  style, batch_size = style_of_mode(stage.style, mode), stage.options.batch_size
  if mode == "score":
    score = make_score(decoder, stage.vocabulary, style, stage.constraint(style))
    return lambda params, slates, shown, on_progress: rank_by_scores(
      score, params, slates, shown, stage.prompts, style, batch_size=batch_size, on_progress=on_progress
    )
  limit = most_new_tokens(stage.run, slates, stage.vocabulary, style)
  config = RolloutConfig.of(decoder, stage.vocabulary, group=1, max_new_tokens=limit, constraint=stage.constraint(style))
  generate = make_generate(config)

  def rank(
    params: Any,
    slates: Sequence[Slate],
    shown: Sequence[np.ndarray],
    on_progress: Callable[[int], None],
    histories: Sequence[Sequence[int]] | None = None,
  ) -> RankedSlates:
    options = {"batch_size": batch_size, "key": stage.key, "on_progress": on_progress, "histories": histories}
    return rank_slates(generate, params, slates, shown, stage.prompts, style, **options)

  return rank


def make_scored_rank(answer: Answer, read: ScoredSlates) -> RankFn:
  """The order of a scored policy's scores of slates, which are read as `read`, whatever order they are shown in."""
  real = read.labels >= 0
  upstream = np.tile(np.arange(real.shape[1]), (len(real), 1))

  def rank(params: Any, slates: Sequence[Slate], shown: Sequence[np.ndarray], on_progress: Callable[[int], None]) -> RankedSlates:
    found = answer(params, read)
    on_progress(len(slates))
    lengths = np.array([len(tokens) for tokens in found.thoughts], np.int32)
    return RankedSlates(*read_scores(found.scores, upstream, real), found.thoughts, real.sum(axis=1), lengths, lengths)

  return rank


class MeanOfOrders:
  """What a policy that writes answers over all orders in which slates are shown: candidates by their mean log-probability.

  Averaged is, for each candidate, the log-probability that the answer begins with it, behind the reasoning that was written in that order
  of candidates, if any. An order in which a reasoning came to no answer is left out of its slate's mean.
  """

  def __init__(self, stage: StageContext, decoder: Decoder, mode: str, slates: Sequence[Slate]):
    """For policies of a decoder asked in a mode, whose answers are compact; compiled once for all of them."""
    self._stage, self._slates, self._asked = stage, slates, style_of_mode(stage.style, mode)
    answering = style_of_mode(stage.style, "score")
    self._score = make_score(decoder, stage.vocabulary, answering, stage.constraint(answering))
    self._longest = 0 if self._asked.direct else most_new_tokens(stage.run, slates, stage.vocabulary, self._asked)

  def sort(self, params: Any, orders: Sequence[tuple[Sequence[np.ndarray], RankedSlates]]) -> RankerAnswers:
    """The mean of all `orders`, pairs of how slates were shown and what was answered; its cost is that of all of them."""
    found = np.stack([self._log_probs(params, *order) for order in orders])
    known = ~np.isnan(found)
    count = known.sum(axis=0)
    mean = np.where(count > 0, np.where(known, found, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
    upstream = np.tile(np.arange(mean.shape[1]), (len(mean), 1))
    rankings, errors = read_scores(mean, upstream, ~np.isneginf(mean))
    errors = [error and (of_first or error) for error, of_first in zip(errors, orders[0][1].errors, strict=True)]
    tokens = {name: float(sum(getattr(ranked, name).mean() for _, ranked in orders)) for name in ("prompt_tokens", "completion_tokens")}
    return RankerAnswers({"upstream": Answers(rankings, upstream, errors)}, tokens)

  def _log_probs(self, params: Any, shown: Sequence[np.ndarray], ranked: RankedSlates) -> np.ndarray:
    """Log-probabilities `[n, K]` by candidate: -inf where there is none, NaN throughout behind a reasoning without an answer."""
    prompts = render_prompts(self._slates, shown, self._stage.prompts, self._asked)
    tokens, mask, answered = prompts.tokens, prompts.mask, np.ones(len(self._slates), bool)
    if not self._asked.direct:
      written = np.full((len(self._slates), self._longest), self._stage.vocabulary.pad_id, np.int32)
      for row, completion in zip(written, ranked.completions, strict=True):
        row[: len(completion)] = completion
      tokens, mask, answered = append_reasoning(prompts, written, self._stage.vocabulary)
    presented = pad_shown(shown, max(len(slate.candidates) for slate in self._slates))
    references = prompts.references[:, : presented.shape[1]]
    by_slot = score_in_batches(self._score, params, tokens, mask, references, self._stage.options.batch_size)
    by_candidate = np.full(by_slot.shape, -np.inf)
    np.put_along_axis(by_candidate, presented, by_slot, axis=1)
    return np.where(answered[:, None] | np.isneginf(by_candidate), by_candidate, np.nan)


def ask_policy(
  stage: StageContext, name: str, params: Any, rank: RankFn, slates: Sequence[Slate], mean: MeanOfOrders | None = None
) -> dict[str, RankerAnswers]:
  """Answers in the upstream presentation and in `options.shuffles` shuffled ones, which are timed; writes `answers_NAME.jsonl`.

  With `mean`, and any shuffled presentation, also the order of the mean over all presentations, as `NAME_averaged`.
  Answers whose numbers are not finite are invalid; raises DataError that names the policy where all are so.
  """
  presentations = {"upstream": ("upstream", 0)} | {f"shuffled_{i + 1}": ("shuffled", i) for i in range(stage.options.shuffles)}
  width = max(len(slate.candidates) for slate in slates)
  answers, cost, orders, reasons = {}, None, [], []
  with stage.task(f"evaluation: {name}", len(presentations) * len(slates), "slates") as task:
    report = stage.on_progress(task)
    for number, (presentation, (mode, index)) in enumerate(presentations.items()):
      shown = [present(len(slate.candidates), mode, (stage.seed, i, index)) for i, slate in enumerate(slates)]
      began = time.perf_counter()
      ranked = rank(params, slates, shown, functools.partial(_report_after, report, number * len(slates)))
      seconds = time.perf_counter() - began
      if all(error == NOT_FINITE for error in ranked.errors):
        raise DataError(f"{name}: none of its scores is finite, since its training diverged; train it at a lower learning rate")
      orders.append((shown, ranked))
      answers[presentation] = Answers(ranked.rankings, pad_shown(shown, width), ranked.errors)
      if cost is None:
        cost = {"prompt_tokens": float(ranked.prompt_tokens.mean()), "completion_tokens": float(ranked.completion_tokens.mean())}
        if any(ranked.reasoning_tokens) and stage.style.answer == "compact":
          facts = TabledFacts(stage.run, stage.catalogue)
          reasons = check_reasons(ranked.completions, slates, shown, stage.prompts, stage.style, facts)
        if stage.run.main:
          _write_answers(stage.path(f"answers_{name}.jsonl"), slates, ranked, stage.vocabulary, reasons)
      else:
        cost["ms_per_slate"] = 1000 * seconds / len(slates)
  found = {name: RankerAnswers(answers, cost, reasons)}
  return found if mean is None or len(orders) == 1 else found | {name + AVERAGED: mean.sort(params, orders)}


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
  report(before + done)


def _write_answers(
  path: pathlib.Path, slates: Sequence[Slate], ranked: RankedSlates, vocabulary: Vocabulary, reasons: Sequence[CheckedReason]
) -> None:
  """One line a slate, in the upstream presentation: the request, the order answered (ids, or null and the error kind), and the text.

  With reasonings also what they say: the item that they call the best, and of each statement whether it is true.
  """
  with path.open("w", encoding="utf-8") as file:
    for row, (slate, ranking, error, completion) in enumerate(zip(slates, ranked.rankings, ranked.errors, ranked.completions, strict=True)):
      order = None if error else [slate.candidates[i] for i in ranking if i >= 0]
      line = {
        "user": slate.user,
        "history": slate.history,
        "candidates": slate.candidates,
        "labels": slate.labels,
        "order": order,
        "error": error,
        "completion": vocabulary.decode(completion),
      }
      if reasons:
        line |= describe_reason(reasons[row], slate)
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
