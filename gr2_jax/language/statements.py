"""What a reasoning states of candidates, and whether it is true: words for facts, and what the scripted teacher may say.

What is said is said of the candidate that was named last before it, and before any name of the one that the reasoning calls the best.
Whatever else a reasoning says is no statement.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.evidence.words import FACT_WORDS
from gr2_jax.language import templates
from gr2_jax.language.answers import reference_tokens
from gr2_jax.language.prompts import FactReader, PromptContext, PromptStyle

# What the scripted teacher states, beside facts: the categories of the last item and of the candidate, a brand that the user knows, how
# often the candidate was bought after the last item, and that neither of the last two speaks for it.
LAST_CATEGORY, CATEGORY, BRAND, BOUGHT_AFTER, NOTHING = "last_category", "its_category", "its_brand", "bought_after", "nothing_known"
FACT_BEHIND: Mapping[str, str] = {CATEGORY: "leaf_next_count", BRAND: "brand_share", BOUGHT_AFTER: "next_count_last"}
"""The fact of `evidence.facts` by which a policy that reads facts can know what the scripted teacher states."""
_COUNT = FACT_BEHIND[BOUGHT_AFTER]

_BEST = (templates.BEST, templates.LONG_MATCH[0])  # the words behind which the best candidate is named


@dataclasses.dataclass(frozen=True)
class Statement:
  """`said`, in the text's own words, of the candidate at an index of the slate; None: of none of its candidates.

  `fact`: a name of `evidence.facts.FACTS`, or one of those above.
  """

  candidate: int | None
  fact: str
  said: str


@dataclasses.dataclass(frozen=True)
class Reason:
  """The candidate (index in the slate) that a reasoning calls the best, None where it names none, and what it states."""

  first: int | None
  statements: tuple[Statement, ...]


@dataclasses.dataclass(frozen=True)
class _Name:
  candidate: int | None


@dataclasses.dataclass(frozen=True)
class _Word:
  fact: str
  said: str


def read_reason(
  tokens: Sequence[int], slate: Slate, shown: Sequence[int] | np.ndarray, context: PromptContext, style: PromptStyle
) -> Reason:
  """What a compact completion, or the inside of its reasoning, says of the candidates `shown [K]`. No text makes it fail.

  The best is the candidate that is named right behind the words for it, else the one named last.
  """
  parts = list(_split(_inside(tokens, context), slate, shown, context, style))
  named = [part.candidate for part in parts if isinstance(part, _Name)]
  best = [
    part.candidate
    for before, part in zip(parts, parts[1:], strict=False)
    if isinstance(part, _Name) and isinstance(before, str) and before.endswith(_BEST)
  ]
  first = (best or named[-1:] or [None])[0]
  about, statements = first, []
  for part in parts:
    if isinstance(part, _Name):
      about = part.candidate
    elif isinstance(part, _Word):
      statements.append(Statement(about, part.fact, part.said))
    else:
      statements += [Statement(about, *found) for found in _read_text(part, style)]
  return Reason(first, tuple(statements))


def are_true(reason: Reason, slate: Slate, context: PromptContext, style: PromptStyle, facts: FactReader) -> list[bool]:
  """Whether each statement says exactly what the evidence table does: of a fact the bucket that its value is in.

  `facts`: the table of the slate's run; raises DataError for a slate of another one.
  """
  truth = {statement.fact: _true_words(statement.fact, slate, context, style, facts) for statement in reason.statements}
  return [of.candidate is not None and of.said in truth[of.fact][of.candidate] for of in reason.statements]


def _inside(tokens: Sequence[int], context: PromptContext) -> list[int]:
  """The tokens between `<think>`, where it is there, and what ends the reasoning."""
  vocabulary = context.vocabulary
  found = list(map(int, tokens))
  if found[:1] == [vocabulary.special("think")]:
    found = found[1:]
  ends = [found.index(token) for token in (vocabulary.special("/think"), vocabulary.special("answer")) if token in found]
  return found[: min(ends, default=len(found))]


def _split(
  tokens: list[int], slate: Slate, shown: Sequence[int] | np.ndarray, context: PromptContext, style: PromptStyle
) -> Iterator[_Name | _Word | str]:
  """Names, words for facts, and the text between them."""
  vocabulary = context.vocabulary
  codes = context.codes[context.catalogue.to_rows(slate.candidates)] if style.reference == "sid" else None
  references = dict(zip(reference_tokens(shown, vocabulary, style, codes), map(int, shown), strict=True))
  length, place, text = len(next(iter(references))), 0, []
  while place < len(tokens):
    token, reference = tokens[place], tuple(tokens[place : place + length])
    part: _Name | _Word | None = None
    if reference in references:
      part, place = _Name(references[reference]), place + length - 1
    elif vocabulary.candidate_start <= token < vocabulary.sid_start:
      part = _Name(None)  # of a slot that the slate lacks
    elif vocabulary.fact_start <= token < vocabulary.candidate_start:
      part = _Word(vocabulary.facts[(token - vocabulary.fact_start) // vocabulary.fact_buckets], vocabulary.surface(token))
    place += 1
    if part is None:
      text.append(token)
      continue
    if text:
      yield vocabulary.decode(text)
      text = []
    yield part
  if text:
    yield vocabulary.decode(text)


def _read_text(text: str, style: PromptStyle) -> list[tuple[str, str]]:
  """(fact, what is said of it) of a piece of text without names: sentences of the style's facts, or of the scripted teacher."""
  if style.fact_form == "sentences" and style.facts:
    shapes = _shapes(style.facts)
    clauses = [clause.strip() for clause in text.split(";")[:-1]]
    return [(shapes[shape], clause) for clause in clauses if (shape := _to_shape(clause)) in shapes]
  if style.instructions == "full":
    return _read_scripted_sentences(text)
  found = _SHORT.fullmatch(text)
  if found is None:
    return []
  last, following, support = found.groups()
  kind = BOUGHT_AFTER if support in templates.AFTER_SHORT else NOTHING if support == templates.NEW else BRAND
  return [(LAST_CATEGORY, last), (CATEGORY, following), (kind, support)]


_SHORT = re.compile(f"(.+) {templates.THEN} (.+) {templates.SO} (.+) {templates.BEST}")


def _to_pattern(template: str) -> re.Pattern[str]:
  return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+?)", re.escape(template)))


_NEXT, _SAME, _BRAND = map(_to_pattern, (templates.LONG_NEXT, templates.LONG_SAME, templates.LONG_BRAND))


def _read_scripted_sentences(text: str) -> list[tuple[str, str]]:
  said = []
  if found := _NEXT.search(text):
    said += [(LAST_CATEGORY, found["last"]), (CATEGORY, found["next"])]
  if found := _SAME.search(text):
    said += [(LAST_CATEGORY, found["next"]), (CATEGORY, found["next"])]
  if found := _BRAND.search(text):
    said.append((BRAND, found["brand"]))
  return said + [(kind, words) for kind, words in ((BOUGHT_AFTER, templates.LONG_AFTER), (NOTHING, templates.LONG_FRESH)) if words in text]


def _to_shape(sentence: str) -> str:
  """A fact's sentence without its numbers, by which the fact is told, right or wrong."""
  return re.sub(r"s\b", "", re.sub(r"-?\d+(\.\d+)?", "#", sentence))


@functools.cache
def _shapes(names: tuple[str, ...]) -> dict[str, str]:
  """The fact behind each shape that its sentences have."""
  levels = [(value, bucket) for value in (-1.0, 0.0, 1.0, math.log1p(99)) for bucket in (0, 1)]
  return {_to_shape(FACT_WORDS[name].sentence(value, bucket, 2)): name for name in names for value, bucket in levels}


def _true_words(fact: str, slate: Slate, context: PromptContext, style: PromptStyle, facts: FactReader) -> list[set[str]]:
  """What may be said of a fact of each candidate `[K]`."""
  if fact in style.facts:
    column = style.facts.index(fact)
    return [{context.vocabulary.decode(of[column]).removesuffix(";")} for of in context.fact_tokens(slate, style)]
  items = [context.catalogue.items[row] for row in context.catalogue.to_rows(slate.candidates)]
  past = [context.catalogue.items[row] for row in context.catalogue.to_rows(slate.history)]

  def written(text: str) -> str:
    return context.vocabulary.decode(context.text(text))

  known = {item.brand for item in past if item.brand}
  counts = np.rint(np.expm1(facts.read_slate(slate, (_COUNT,))[:, 0])).astype(int).tolist()
  say: Callable[[int], set[str]]
  match fact:
    case "last_category":
      say = lambda row: {written(item.leaf or templates.UNKNOWN_CATEGORY) for item in past[-1:]}
    case "its_category":
      say = lambda row: {written(items[row].leaf or templates.UNKNOWN_CATEGORY)}
    case "its_brand":
      say = lambda row: {written(brand)} if (brand := items[row].brand) in known and brand else set()
    case "bought_after":
      say = lambda row: {templates.AFTER_SHORT[min(counts[row], 3) - 1], templates.LONG_AFTER} if counts[row] > 0 else set()
    case "nothing_known":
      say = lambda row: {templates.NEW, templates.LONG_FRESH} if not counts[row] and items[row].brand not in known else set()
    case _:
      say = lambda row: set()  # a word for a fact that prompts no longer show
  return [say(row) for row in range(len(items))]
