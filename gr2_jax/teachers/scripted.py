"""A scripted teacher: fixed, imperfect rules over categories, brands, complements, recency and co-purchases. It sees no label.

It stands in for a large language model where none can run: its traces have the three steps of GR2's prompt (broad pattern, category or
complement, candidate), its ranking is a noisy utility, and it is wrong often enough that rejection sampling has something to reject.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gr2_jax.data import schema
from gr2_jax.evidence.patterns import LATEST_ITEMS, PATTERN_FEATURES, Patterns, pattern_features
from gr2_jax.language import templates
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.settings import check_settings, setting
from gr2_jax.teachers.sampling import Proposal, TeacherFn, TraceRequest


@dataclasses.dataclass(frozen=True)
class TeacherWeights:
  """Weights of the features (`evidence.patterns.PATTERN_FEATURES`), each in 0..1, in units of the temperature's noise; below 0 it counts
  against a candidate. Raises ValueError.
  """

  complement: float = setting(2.0, "weight of how often the candidate's category follows those of the latest items")
  taste: float = setting(1.0, "weight of the history's share in the candidate's category")
  brand: float = setting(1.5, "weight of the history's share of the candidate's brand")
  after: float = setting(1.5, "weight of how often the candidate followed the latest items")
  upstream: float = setting(1.0, "weight of the candidate's upstream rank; 0 where prompts neither show the upstream order nor hint at it")

  def __post_init__(self) -> None:
    check_settings(self)


def make_scripted_teacher(
  patterns: Patterns, context: PromptContext, style: PromptStyle, weights: TeacherWeights | None = None
) -> TeacherFn:
  """The scripted teacher as a TeacherFn, over patterns that were fitted on training histories.

  Rankings follow score + temperature · Gumbel noise, that is, Plackett-Luce samples.
  """
  vector = np.asarray([getattr(weights or TeacherWeights(), name) for name in PATTERN_FEATURES])

  def teach(requests: Sequence[TraceRequest]) -> list[Proposal]:
    return [_propose(request, patterns, context, style, vector) for request in requests]

  return teach


def _propose(request: TraceRequest, patterns: Patterns, context: PromptContext, style: PromptStyle, weights: np.ndarray) -> Proposal:
  slate = request.slate
  scores = pattern_features(slate, patterns, context.catalogue) @ weights
  scores = scores + request.temperature * np.random.default_rng(request.key).gumbel(size=len(scores))
  if request.target is not None:
    scores[request.target] = np.inf
  ranking = tuple(np.argsort(-scores, kind="stable").tolist())
  write = _write_long if style.instructions == "full" else _write_short
  return Proposal(write(slate, request.shown, ranking, patterns, context, style), ranking)


def _write_short(
  slate: schema.Slate, shown: np.ndarray, ranking: tuple[int, ...], patterns: Patterns, context: PromptContext, style: PromptStyle
) -> list[int]:
  """`LAST then NEXT so SUPPORT best REFERENCE`: the categories, what else speaks for the choice, and the choice."""
  last, chosen = context.catalogue.rows[slate.history[-1]], context.catalogue.rows[slate.candidates[ranking[0]]]
  words = [
    _category(last, patterns),
    templates.THEN,
    _category(chosen, patterns),
    templates.SO,
    _support(slate, chosen, patterns, context),
    templates.BEST,
  ]
  return [token for word in words for token in context.text(word)] + reference_to(ranking[0], slate, shown, context, style)


def _support(slate: schema.Slate, chosen: int, patterns: Patterns, context: PromptContext) -> str:
  """The brand when the user knows it, else how often it followed the last item, else a word for nothing of that."""
  rows = context.catalogue.to_rows(slate.history)
  brand = int(patterns.brand_of[chosen])
  if brand and brand in patterns.brand_of[rows]:
    return patterns.brands[brand]
  count = int(patterns.copurchases.count(rows[-1], chosen, slate.timestamp))
  return templates.AFTER_SHORT[min(count, len(templates.AFTER_SHORT)) - 1] if count else templates.NEW


def _write_long(
  slate: schema.Slate, shown: np.ndarray, ranking: tuple[int, ...], patterns: Patterns, context: PromptContext, style: PromptStyle
) -> list[int]:
  """The three steps in sentences; each item that they mention is quoted by its SID or its candidate name."""
  encode = context.vocabulary.encode
  rows = context.catalogue.to_rows(slate.history)
  chosen = context.catalogue.rows[slate.candidates[ranking[0]]]
  last, following = _category(rows[-1], patterns), _category(chosen, patterns)
  trail = list(dict.fromkeys(_category(row, patterns) for row in rows[-LATEST_ITEMS:]))
  tokens = encode(templates.LONG_PATTERN.format(trail=", ".join(trail), last=last)) + context.sid_tokens(rows[-1], style.sid_markers)
  step = templates.LONG_SAME if following == last else templates.LONG_NEXT
  tokens += encode(step.format(last=last, next=following))
  brand = patterns.brand_of[chosen]
  if brand and brand in patterns.brand_of[rows]:
    tokens += encode(templates.LONG_BRAND.format(brand=patterns.brands[brand]))
  elif patterns.copurchases.count(rows[-1], chosen, slate.timestamp):
    tokens += encode(templates.LONG_AFTER)
  else:
    tokens += encode(templates.LONG_FRESH)
  opening, middle, closing = templates.LONG_MATCH
  tokens += encode(opening) + reference_to(ranking[0], slate, shown, context, style) + encode(middle.format(next=following))
  return tokens + reference_to(ranking[1], slate, shown, context, style) + encode(closing)


def _category(row: int, patterns: Patterns) -> str:
  return patterns.categories[patterns.category_of[row]] or templates.UNKNOWN_CATEGORY


def reference_to(candidate: int, slate: schema.Slate, shown: np.ndarray, context: PromptContext, style: PromptStyle) -> list[int]:
  """The tokens by which a reasoning names a candidate."""
  if style.reference == "sid":
    return context.sid_tokens(context.catalogue.rows[slate.candidates[candidate]], style.sid_markers)
  return [context.vocabulary.candidate_start + list(shown).index(candidate)]
