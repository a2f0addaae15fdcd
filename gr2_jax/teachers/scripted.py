"""A scripted teacher: fixed, imperfect rules over categories, brands, complements, recency and co-purchases. It sees no label.

It stands in for a large language model where none can run: its traces have the three steps of GR2's prompt (broad pattern, category or
complement, candidate), its ranking is a noisy utility, and it is wrong often enough that rejection sampling has something to reject.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gr2_jax.data import schema
from gr2_jax.evidence import counts
from gr2_jax.language import templates
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.teachers.sampling import Proposal, Request, TeacherFn

_FEATURES = ("complement", "taste", "brand", "after", "upstream")
_LATEST = 3  # items whose successors count as complements
_DECAY = 0.5  # weight of each step further back among the latest
_TASTE_DECAY = 0.9
_OFTEN = 3  # co-purchases above this add nothing


@dataclasses.dataclass(frozen=True)
class TeacherWeights:
  """Weights of the features, each in 0..1, in units of the temperature's noise.

  `upstream` weighs the upstream order; set it to 0 where prompts neither show the upstream order nor hint at it.
  """

  complement: float = 2.0
  taste: float = 1.0
  brand: float = 1.5
  after: float = 1.5
  upstream: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Patterns:
  """What the teacher knows of the training histories; every count can be limited to what happened before a request.

  `category_of [N]`, `brand_of [N]`: index into `categories`, `brands`; entry 0 of each stands for none.
  """

  categories: tuple[str, ...]
  brands: tuple[str, ...]
  category_of: np.ndarray
  brand_of: np.ndarray
  successions: counts.TransitionCounts
  copurchases: counts.TransitionCounts


def fit_patterns(histories: Sequence[schema.History], catalogue: schema.Catalogue) -> Patterns:
  """Mines leaf-category successions and item successions from training histories; raises DataError for an unknown item."""
  leaves = [item.leaf for item in catalogue.items]
  brands = [item.brand or "" for item in catalogue.items]
  category_names, brand_names = ("", *sorted(set(leaves) - {""})), ("", *sorted(set(brands) - {""}))
  category_index = {name: index for index, name in enumerate(category_names)}
  brand_index = {name: index for index, name in enumerate(brand_names)}
  category_of = np.array([category_index[name] for name in leaves], np.int64)
  # The same counts one level up: a catalogue whose items are the categories.
  category_items = schema.Catalogue(tuple(schema.Item(str(index), name) for index, name in enumerate(category_names)))
  as_categories = [
    dataclasses.replace(history, items=tuple(str(category_of[row]) for row in catalogue.to_rows(history.items))) for history in histories
  ]
  return Patterns(
    category_names,
    brand_names,
    category_of,
    np.array([brand_index[name] for name in brands], np.int64),
    counts.TransitionCounts.fit(as_categories, category_items),
    counts.TransitionCounts.fit(histories, catalogue),
  )


def compute_features(slate: schema.Slate, patterns: Patterns, catalogue: schema.Catalogue) -> np.ndarray:
  """Features `[K, 5]` in 0..1, in the order complement, taste, brand, after, upstream; only what happened before the request."""
  rows = np.asarray(catalogue.to_rows(slate.candidates))
  past = np.asarray(catalogue.to_rows(slate.history))
  latest = past[::-1][:_LATEST]
  near = _DECAY ** np.arange(len(latest))
  every = np.arange(len(patterns.categories))
  followers = patterns.successions.count(patterns.category_of[latest][:, None], every, slate.timestamp)
  followers[:, 0] = 0  # nothing follows from an item without a category
  complement = near @ (followers / np.maximum(followers.max(1, keepdims=True), 1)) / near.sum()
  far = _TASTE_DECAY ** np.arange(len(past))[::-1]
  after = near @ patterns.copurchases.count(latest[:, None], rows, slate.timestamp)
  columns = [
    complement[patterns.category_of[rows]],
    _share(patterns.category_of, past, rows, far),
    _share(patterns.brand_of, past, rows, far),
    np.minimum(after, _OFTEN) / _OFTEN,
    1 - np.arange(len(rows)) / (len(rows) - 1),
  ]
  return np.stack(columns, axis=-1)


def _share(kind_of: np.ndarray, past: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Weighted share of the history that has the candidate's category or brand; 0 where the candidate has none."""
  same = (kind_of[past][:, None] == kind_of[rows]) & (kind_of[rows] > 0)
  return weights @ same / weights.sum()


def make_scripted_teacher(
  patterns: Patterns, context: PromptContext, style: PromptStyle, weights: TeacherWeights | None = None
) -> TeacherFn:
  """The scripted teacher as a TeacherFn. Rankings follow score + temperature · Gumbel noise, that is, Plackett-Luce samples."""
  vector = np.asarray([getattr(weights or TeacherWeights(), name) for name in _FEATURES])

  def teach(requests: Sequence[Request]) -> list[Proposal]:
    return [_propose(request, patterns, context, style, vector) for request in requests]

  return teach


def _propose(request: Request, patterns: Patterns, context: PromptContext, style: PromptStyle, weights: np.ndarray) -> Proposal:
  slate = request.slate
  scores = compute_features(slate, patterns, context.catalogue) @ weights
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
  return [token for word in words for token in context.text(word)] + _reference(ranking[0], slate, shown, context, style)


def _support(slate: schema.Slate, chosen: int, patterns: Patterns, context: PromptContext) -> str:
  """The brand when the user knows it, else how often it followed the last item, else a word for nothing of that."""
  rows = context.catalogue.to_rows(slate.history)
  if patterns.brand_of[chosen] and patterns.brand_of[chosen] in patterns.brand_of[rows]:
    return patterns.brands[patterns.brand_of[chosen]]
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
  trail = list(dict.fromkeys(_category(row, patterns) for row in rows[-_LATEST:]))
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
  tokens += encode(opening) + _reference(ranking[0], slate, shown, context, style) + encode(middle.format(next=following))
  return tokens + _reference(ranking[1], slate, shown, context, style) + encode(closing)


def _category(row: int, patterns: Patterns) -> str:
  return patterns.categories[patterns.category_of[row]] or templates.UNKNOWN_CATEGORY


def _reference(candidate: int, slate: schema.Slate, shown: np.ndarray, context: PromptContext, style: PromptStyle) -> list[int]:
  if style.reference == "sid":
    return context.sid_tokens(context.catalogue.rows[slate.candidates[candidate]], style.sid_markers)
  return [context.vocabulary.candidate_start + list(shown).index(candidate)]
