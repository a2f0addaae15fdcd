"""The tree as a teacher that reasons: its order, and of the facts that prompts show those that moved it, each quoted as a prompt writes it.

It saw labels of other users, so that its traces are not label-free as the scripted teacher's are; of a slate that it is asked about it saw
neither the label nor any other slate of its user.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.language import templates
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.teachers.sampling import Proposal, TeacherFn, TraceRequest
from gr2_jax.teachers.scripted import reference_to

FOR_THE_FIRST = 3  # facts that are quoted, at most
_LONG = (templates.LONG_MATCH[0], "Against")


class TreeView(NamedTuple):
  """What a tree makes of a slate: `scores [K]` of its candidates, and of these what each fact that a prompt shows adds, `[K, F]`."""

  scores: np.ndarray
  contributions: np.ndarray


Look = Callable[[Sequence[Slate]], Sequence[TreeView]]


def make_tree_teacher(look: Look, context: PromptContext, style: PromptStyle) -> TeacherFn:
  """The tree as a TeacherFn; `look` says what it makes of slates, in the order of the style's facts.

  Rankings follow score + temperature · Gumbel noise, that is, Plackett-Luce samples.
  """

  def teach(requests: Sequence[TraceRequest]) -> list[Proposal]:
    views = look([request.slate for request in requests])
    return [_propose(request, view, context, style) for request, view in zip(requests, views, strict=True)]

  return teach


def _propose(request: TraceRequest, view: TreeView, context: PromptContext, style: PromptStyle) -> Proposal:
  scores = view.scores + request.temperature * np.random.default_rng(request.key).gumbel(size=len(view.scores))
  if request.target is not None:
    scores[request.target] = np.inf
  ranking = tuple(np.argsort(-scores, kind="stable").tolist())
  return Proposal(_write(request, ranking, view.contributions, context, style), ranking)


def _write(
  request: TraceRequest, ranking: tuple[int, ...], contributions: np.ndarray, context: PromptContext, style: PromptStyle
) -> list[int]:
  """`best FIRST FACT FACT FACT then SECOND FACT`: the choice and what speaks for it, and what against the second.

  Names come first, so that a policy that writes the same way knows of whom it states a fact.
  """
  first, second = ranking[0], ranking[1] if len(ranking) > 1 else None
  quotes = context.fact_tokens(request.slate, style)

  def refer(candidate: int) -> list[int]:
    return reference_to(candidate, request.slate, request.shown, context, style)

  best, against = _LONG if style.instructions == "full" else (templates.BEST, templates.THEN)
  tokens = [*context.text(best), *refer(first)]
  for fact in strongest(contributions[first] - contributions.mean(axis=0), FOR_THE_FIRST):
    tokens += quotes[first][fact]
  if second is not None:
    for fact in strongest(contributions[first] - contributions[second], 1):
      tokens += [*context.text(against), *refer(second), *quotes[second][fact]]
  return tokens


def strongest(gains: np.ndarray, most: int) -> list[int]:
  """The largest of `gains [F]`, as indices, the largest first; of those above 0 alone."""
  return [fact for fact in np.argsort(-gains, kind="stable")[:most].tolist() if gains[fact] > 0]
