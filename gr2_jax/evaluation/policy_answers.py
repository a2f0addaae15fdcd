"""A run's policies asked about slates: in each mode, in several presentations, with what an answer costs."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.results import Answers, RankerAnswers
from gr2_jax.language.answers import NOT_FINITE
from gr2_jax.language.prompts import present
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.rerank import RankedSlates, pad_shown, rank_slates
from gr2_jax.rollout.scoring import make_score, rank_by_scores, read_scores
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.load import most_new_tokens, style_of_mode
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


def ask_policy(stage: StageContext, name: str, params: Any, rank: RankFn, slates: Sequence[Slate]) -> RankerAnswers:
  """Answers in the upstream presentation and in `options.shuffles` shuffled ones, which are timed; writes `answers_NAME.jsonl`.

  Answers whose numbers are not finite are invalid; raises DataError that names the policy where all are so.
  """
  presentations = {"upstream": ("upstream", 0)} | {f"shuffled_{i + 1}": ("shuffled", i) for i in range(stage.options.shuffles)}
  width = max(len(slate.candidates) for slate in slates)
  answers, cost = {}, None
  with stage.task(f"evaluation: {name}", len(presentations) * len(slates), "slates") as task:
    report = stage.on_progress(task)
    for number, (presentation, (mode, index)) in enumerate(presentations.items()):
      shown = [present(len(slate.candidates), mode, (stage.seed, i, index)) for i, slate in enumerate(slates)]
      began = time.perf_counter()
      ranked = rank(params, slates, shown, functools.partial(_report_after, report, number * len(slates)))
      seconds = time.perf_counter() - began
      if all(error == NOT_FINITE for error in ranked.errors):
        raise DataError(f"{name}: none of its scores is finite, since its training diverged; train it at a lower learning rate")
      answers[presentation] = Answers(ranked.rankings, pad_shown(shown, width), ranked.errors)
      if cost is None:
        cost = {"prompt_tokens": float(ranked.prompt_tokens.mean()), "completion_tokens": float(ranked.completion_tokens.mean())}
        if stage.run.main:
          _write_answers(stage.path(f"answers_{name}.jsonl"), slates, ranked, stage.vocabulary)
      else:
        cost["ms_per_slate"] = 1000 * seconds / len(slates)
  return RankerAnswers(answers, cost)


def _report_after(report: Callable[[int], None], before: int, done: int) -> None:
  report(before + done)


def _write_answers(path: pathlib.Path, slates: Sequence[Slate], ranked: RankedSlates, vocabulary: Vocabulary) -> None:
  """One line a slate, in the upstream presentation: the request, the order answered (ids, or null and the error kind), and the text."""
  with path.open("w", encoding="utf-8") as file:
    for slate, ranking, error, completion in zip(slates, ranked.rankings, ranked.errors, ranked.completions, strict=True):
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
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
