"""What reasonings are worth as reasons: whether what they state is true, whether it matters, and whether they name the answer's first."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.evaluation.paired import paired_bootstrap, paired_means
from gr2_jax.language.prompts import FactReader, PromptContext, PromptStyle
from gr2_jax.language.statements import FACT_BEHIND, Reason, Statement, are_true, read_reason

_LEAST = 1e-6  # by which a score must fall


@dataclasses.dataclass(frozen=True)
class CheckedReason:
  """A reasoning, of each of its statements whether it is true, and the tokens in which it was given."""

  reason: Reason
  true: tuple[bool, ...]
  tokens: tuple[int, ...] = ()


def check_reasons(
  completions: Sequence[Sequence[int]],
  slates: Sequence[Slate],
  shown: Sequence[np.ndarray],
  context: PromptContext,
  style: PromptStyle,
  facts: FactReader,
) -> list[CheckedReason]:
  """Completions, or the reasonings alone, against the evidence table `facts` of the slates' run."""
  checked = []
  for tokens, slate, order in zip(completions, slates, shown, strict=True):
    reason = read_reason(tokens, slate, order, context, style)
    checked.append(CheckedReason(reason, tuple(are_true(reason, slate, context, style, facts)), tuple(tokens)))
  return checked


def describe_reason(checked: CheckedReason, slate: Slate) -> dict[str, Any]:
  """What a line of `answers_RANKER.jsonl` says of a reasoning about a slate: `named` and `statements`, candidates by their item ids."""

  def item(candidate: int | None) -> str | None:
    return None if candidate is None else slate.candidates[candidate]

  stated = zip(checked.reason.statements, checked.true, strict=True)
  statements = [{"candidate": item(of.candidate), "fact": of.fact, "said": of.said, "true": true} for of, true in stated]
  return {"named": item(checked.reason.first), "statements": statements}


def find_what_matters(
  rescore: Callable[[np.ndarray, np.ndarray], np.ndarray],
  reasons: Sequence[Reason],
  facts: np.ndarray,
  real: np.ndarray,
  names: Sequence[str],
  medians: np.ndarray,
) -> list[tuple[bool | None, ...]]:
  """Of each statement about n slates, whether the policy's scores heed it; None where it reads no such fact.

  The fact, of `facts [n, K, F]` with `names` and `medians [F]`, is set to its median for that candidate alone, behind the same reasoning.
  It matters where the candidate that the reasoning calls the best then falls against the mean of the others, and any other one, against
  whom it speaks, rises. `rescore(rows [m], facts [m, K, F]) -> [m, K]` scores slates anew; `real [n, K]` is true at candidates.
  """
  asked = [
    (row, statement.candidate, column, 1 if statement.candidate == reason.first else -1)
    for row, reason in enumerate(reasons)
    for statement in reason.statements
    if (column := _column(statement, names)) is not None
  ]
  heeded = iter(())
  if asked:
    rows, candidates, columns, signs = np.array(asked).T
    changed = facts[rows].copy()
    changed[np.arange(len(rows)), candidates, columns] = medians[columns]
    scores = rescore(np.concatenate([np.arange(len(facts)), rows]), np.concatenate([facts, changed]))
    whole, without = scores[rows], scores[len(facts) :]
    lost = _margin(whole, candidates, real[rows]) - _margin(without, candidates, real[rows])
    heeded = iter((signs * lost > _LEAST).tolist())
  return [tuple(None if _column(of, names) is None else next(heeded) for of in reason.statements) for reason in reasons]


def _column(statement: Statement, names: Sequence[str]) -> int | None:
  """Which of the facts `names` is stated of a candidate; None for none."""
  fact = FACT_BEHIND.get(statement.fact, statement.fact)
  return names.index(fact) if fact in names and statement.candidate is not None else None


def _margin(scores: np.ndarray, candidates: np.ndarray, real: np.ndarray) -> np.ndarray:
  """How far a candidate's score `[m]` of `[m, K]` is above the mean of the others'; 0 for one without others."""
  own = np.take_along_axis(scores, candidates[:, None], axis=1)[:, 0]
  others = real.sum(axis=1) - 1
  rest = np.where(real, scores, 0).sum(axis=1) - own
  return np.where(others > 0, own - rest / np.maximum(others, 1), 0)


def judge_reasons(
  checked: Sequence[CheckedReason],
  firsts: np.ndarray,
  matters: Sequence[Sequence[bool | None]],
  *,
  clusters: Sequence[str],
  weights: np.ndarray,
  seed: int,
  resamples: int,
) -> dict[str, Any]:
  """What results.json says of a ranker's reasonings about n slates, whose answers put `firsts [n]` first (-1: no answer).

  `no_fact`: share of reasonings that state nothing; `facts`: statements of one, on average; `true`, `matter`: shares of statements, the
  latter of the first `matter_slates` alone, those of `matters`, and of facts that the policy reads; `named_first`: of reasonings whose best
  is the answer's first. Each share has `share` and `ci95`, over resampled `clusters [n]`; both null where there is nothing to count.
  `by_fact`: how often each was `stated`, and the share `true`.
  """
  stated = [len(of.true) for of in checked]
  named = [of.reason.first is not None and of.reason.first == first for of, first in zip(checked, firsts.tolist(), strict=True)]
  known = [[value for value in of if value is not None] for of in matters]
  by_fact = Counter(statement.fact for of in checked for statement in of.reason.statements)
  true = Counter(statement.fact for of in checked for statement, is_true in zip(of.reason.statements, of.true, strict=True) if is_true)

  def share(counted: Sequence[int], of: Sequence[int]) -> dict[str, Any]:
    users = np.asarray(clusters)[: len(counted)]
    return _share(np.asarray(counted), np.asarray(of), users, weights[: len(counted)], seed, resamples)

  return {
    "slates": len(checked),
    "matter_slates": len(known),
    "no_fact": float(np.average(np.array(stated) == 0, weights=weights)),
    "facts": float(np.average(stated, weights=weights)),
    "true": share([sum(of.true) for of in checked], stated),
    "matter": share([sum(of) for of in known], [len(of) for of in known]),
    "named_first": share(named, [1] * len(named)),
    "by_fact": {fact: {"stated": count, "true": true[fact] / count} for fact, count in by_fact.most_common()},
  }


def _share(counted: np.ndarray, of: np.ndarray, clusters: np.ndarray, weights: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
  """The share that `counted [n]` are `of [n]`, with its interval."""
  some = of > 0
  if not some.any():
    return {"share": None, "ci95": None}
  shares, weights, clusters = (counted[some] / of[some])[:, None], weights[some] * of[some], clusters[some]
  if len(set(clusters)) < 2:
    return {"share": float(paired_means(shares, np.zeros_like(shares), weights).delta[0]), "ci95": None}
  found = paired_bootstrap(shares, np.zeros_like(shares), seed=seed, resamples=resamples, clusters=clusters, weights=weights)
  return {"share": float(found.delta[0]), "ci95": [float(found.delta_low[0]), float(found.delta_high[0])]}
