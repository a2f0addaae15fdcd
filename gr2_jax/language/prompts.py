"""The re-ranking prompt: one template along GR2's five principles, from a handful of tokens to full sentences by its style.

Layout, history first: `<bos> <system> task <user> <history> item item ... <candidates> <A> item hints facts <B> item hints facts ...
<assistant>` (`<A>`, `<B>` only where answers refer to slots).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gr2_jax.data import schema
from gr2_jax.evidence import counts
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.evidence.facts import FACTS
from gr2_jax.evidence.words import FACT_WORDS
from gr2_jax.language import templates
from gr2_jax.language.hints import HINTS
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.settings import check_settings, setting

_FIELDS: tuple[str, ...] = ("title", "brand", "category", "categories", "price")


@dataclasses.dataclass(frozen=True)
class PromptStyle:
  """How prompts are written and how answers refer to candidates.

  No field in the history leaves it as mid-training writes it: codes alone. The hint "bought_after" and most facts make the candidate
  part depend on the user. A scored policy, which reads facts packed, has those named here in its reasonings alone. In a `direct` style
  nothing changes but the assistant's beginning, which is written for it (`direct_opening`) on top of `max_prompt_tokens`, so that one
  policy can be asked in both ways about the same slates. Raises ValueError.
  """

  knowledge_priming: bool = setting(False, "whether the log's most frequent successions of categories stand in the instructions")
  order: str = setting("history_first", "which part of a prompt comes first", choices=("history_first", "candidates_first"))
  answer: str = setting(
    "compact",
    "form of a written answer: a list of names between frames, or one JSON object with an explanation",
    choices=("compact", "json"),
  )
  reference: str = setting(
    "slot", "how candidates are named: by the token of their slot, or by their semantic ID alone", choices=("slot", "sid")
  )
  instructions: str = setting(
    "short",
    "how a prompt asks: in a few words, with bare item fields, or by five principles in sentences, with labelled ones",
    choices=("short", "full"),
  )
  item_fields: tuple[str, ...] = setting(
    ("category", "brand"), "what stands beside a candidate's semantic ID; category is the leaf, categories the path", choices=_FIELDS
  )
  history_fields: tuple[str, ...] = setting(("category", "brand"), "the same beside the semantic ID of a past item", choices=_FIELDS)
  max_words: int | None = setting(None, "words of a title that prompts show; None: all", unit="words", low=1)
  sid_markers: bool = setting(False, "whether `<sid>` and `</sid>` stand around semantic IDs")
  hints: tuple[str, ...] = setting(
    (),
    "what stands behind a candidate: its upstream rank (1 is the top), how often it followed the last item before the request",
    choices=tuple(HINTS),
  )
  facts: tuple[str, ...] = setting(
    (),
    "facts behind a candidate's hints, which are also those that the tree teacher may speak of; names of `evidence.facts.FACTS`",
    choices=tuple(FACTS),
  )
  fact_form: str = setting(
    "words",
    "how a fact is written: by a token for each quantile bucket of `evidence.bins`, or as 'bought after the last item 41 times, more than "
    "90 % of candidates', for pretrained models",
    choices=("words", "sentences"),
  )
  max_history: int = setting(8, "latest items of a history that a prompt shows", unit="items", low=1)
  max_prompt_tokens: int = setting(192, "longest prompt; above it the oldest items of the history go first", unit="tokens", low=1)
  direct: bool = setting(False, "whether answers come without reasoning, in the whole run")

  def __post_init__(self) -> None:
    for name in ("item_fields", "history_fields", "hints", "facts"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Token ids of a prompt, how many of them are the history's, and how many of the history's oldest items it leaves out."""

  tokens: list[int]
  history_tokens: int
  dropped_history: int


class FactReader(Protocol):
  """Where prompts find the facts of slates' candidates."""

  @property
  def codes(self) -> FactCodes:
    """The quantiles of the facts that there are."""

  def read_slate(self, slate: schema.Slate, names: Sequence[str]) -> np.ndarray:
    """Facts `[K, F]` of a slate's candidates."""


class PromptContext:
  """What prompts are made of besides the slate: the catalogue, its codes `[N, levels]`, the vocabulary, past transitions, priming text,
  and facts.

  Text is encoded once per item and style, and kept. Raises DataError when the codes don't fit the catalogue or the vocabulary.
  """

  def __init__(
    self,
    catalogue: schema.Catalogue,
    codes: np.ndarray,
    vocabulary: Vocabulary,
    transitions: counts.TransitionCounts | None = None,
    priming: str = "",
    facts: FactReader | None = None,
  ) -> None:
    codes = np.asarray(codes)
    if codes.shape != (len(catalogue), vocabulary.num_levels):
      raise schema.DataError(
        f"codes: shape {codes.shape} for {len(catalogue)} items and {vocabulary.num_levels} levels; tokenize this catalogue again"
      )
    if codes.size and not (codes.min() >= 0 and codes.max() < vocabulary.codebook_size):
      raise schema.DataError(f"codes: outside 0..{vocabulary.codebook_size - 1}; the vocabulary was made for another codebook")
    self.catalogue, self.codes, self.vocabulary = catalogue, codes, vocabulary
    self.transitions, self.priming, self.facts = transitions, priming, facts
    self._text: dict[str, list[int]] = {}
    self._items: dict[tuple[Any, ...], list[int]] = {}

  def text(self, text: str) -> list[int]:
    """Tokens of a short text that comes back often: a name, a fixed sentence, a hint."""
    tokens = self._text.get(text)
    if tokens is None:
      tokens = self._text[text] = self.vocabulary.encode(text)
    return tokens

  def sid_tokens(self, row: int, markers: bool) -> list[int]:
    """Code tokens of the item at `row`, with `<sid>` and `</sid>` around them if asked."""
    tokens = self.vocabulary.sid_tokens(self.codes[row])
    return [self.vocabulary.special("sid"), *tokens, self.vocabulary.special("/sid")] if markers else tokens

  def item_tokens(self, row: int, fields: tuple[str, ...], style: PromptStyle) -> list[int]:
    """Tokens of an item as prompts show it: its codes, then those `fields` that it has."""
    key = (row, fields, style.instructions, style.sid_markers, style.max_words)
    tokens = self._items.get(key)
    if tokens is None:
      texts = [text for field in fields if (text := _field_text(self.catalogue.items[row], field, style.max_words))]
      tokens = self.sid_tokens(row, style.sid_markers)
      if style.instructions == "full":
        tokens = tokens + self.vocabulary.encode(" | ".join(texts))
      else:
        tokens = tokens + [token for text in texts for token in self.text(text)]
      self._items[key] = tokens
    return tokens

  def hint_tokens(self, slate: schema.Slate, style: PromptStyle) -> list[list[int]]:
    """Tokens of the hints on each candidate `[K]`, in the slate's order. Raises DataError for counts without a log."""
    full = style.instructions == "full"
    texts = [hint.texts(slate, self.catalogue, self.transitions, full) for name, hint in HINTS.items() if name in style.hints]
    return [[token for of in texts if of[row] for token in self.text(of[row])] for row in range(len(slate.candidates))]

  def fact_tokens(self, slate: schema.Slate, style: PromptStyle) -> list[list[list[int]]]:
    """Tokens of each of the style's facts on each candidate `[K][F]`, in the slate's order.

    Raises DataError for facts without a reader, and for words that the vocabulary lacks.
    """
    if not style.facts:
      return [[] for _ in slate.candidates]
    if self.facts is None:
      raise schema.DataError(f"prompt.facts: {', '.join(style.facts)} need the stage evidence; run it, or name no facts")
    codes, values = self.facts.codes, self.facts.read_slate(slate, style.facts)

    def write(name: str, value: float, bucket: int) -> list[int]:
      if style.fact_form == "words":
        return [self.vocabulary.fact_word(name, bucket)]
      return self.vocabulary.encode(f"{FACT_WORDS[name].sentence(value, bucket, codes.bins)};")

    rows = zip(values.tolist(), codes.buckets(style.facts, values).tolist(), strict=True)
    return [[write(*of) for of in zip(style.facts, *row, strict=True)] for row in rows]


def _field_text(item: schema.Item, field: str, max_words: int | None) -> str:
  match field:
    case "title" if max_words is not None:
      return " ".join(item.title.split()[:max_words])
    case "category":
      return item.leaf
    case "categories":
      return " > ".join(item.categories)
    case "price":
      return "" if item.price is None else f"{item.price:.2f}"
  return getattr(item, field) or ""


def present(num_candidates: int, mode: str, key: tuple[int, int, int]) -> np.ndarray:
  """Candidate index at each slot, `shown [K]`: the upstream order, or one shuffled by `key` = (seed, slate index, epoch)."""
  if mode == "upstream":
    return np.arange(num_candidates)
  if mode == "shuffled":
    return np.random.default_rng(key).permutation(num_candidates)
  raise ValueError(f"presentation: {mode!r} is not known; choose upstream or shuffled")


def render_prompt(
  slate: schema.Slate, shown: Sequence[int] | np.ndarray, context: PromptContext, style: PromptStyle, history: Sequence[int] | None = None
) -> Prompt:
  """The prompt of a slate with candidate `shown[s]` at slot s, up to the token that opens the assistant's turn, or the direct opening.

  `history`: tokens that stand there instead of the slate's own history, such as a compressed one.
  Raises DataError for an unknown item, for more candidates than the vocabulary has names, and, naming max_prompt_tokens,
  when not even the candidates fit, or the tokens given as `history` don't. A history of which nothing fits is dropped whole, and counted.
  """
  special = context.vocabulary.special
  head, candidates, room = _frame_history(slate, shown, context, style)
  dropped = 0
  if history is None:
    items = history_items(context.catalogue.to_rows(slate.history), context, style, room)
    history, dropped = [token for tokens in items for token in tokens], len(slate.history) - len(items)
  elif len(history) > room:
    raise schema.DataError(
      f"max_prompt_tokens: {style.max_prompt_tokens} leave {room} for the history of user {slate.user!r}, but the one given "
      f"has {len(history)}; raise it or compress to fewer tokens"
    )
  past = [special("history"), *history]
  body = past + candidates if style.order == "history_first" else candidates + past
  opening = direct_opening(context.vocabulary, style) if style.direct else []
  return Prompt([*head, *body, *context.vocabulary.frame("assistant"), *opening], len(history), dropped)


def history_room(slate: schema.Slate, context: PromptContext, style: PromptStyle) -> int:
  """Tokens that the slate's prompt has room for as its history, however its candidates are shown; raises what `render_prompt` raises."""
  return _frame_history(slate, range(len(slate.candidates)), context, style)[2]


def bare_length(slate: schema.Slate, context: PromptContext, style: PromptStyle) -> int:
  """Tokens that the slate's prompt takes without its history: what `max_prompt_tokens` must hold."""
  roomy = dataclasses.replace(style, max_prompt_tokens=2**31 - 1)
  return roomy.max_prompt_tokens - history_room(slate, context, roomy)


def _frame_history(
  slate: schema.Slate, shown: Sequence[int] | np.ndarray, context: PromptContext, style: PromptStyle
) -> tuple[list[int], list[int], int]:
  """(the prompt up to `<user>`, its candidate part, tokens left for the history)."""
  frame = context.vocabulary.frame
  candidates = [*frame("candidates"), *_candidate_tokens(slate, shown, context, style)]
  head = [*frame("bos"), *frame("system"), *_instruction_tokens(context, style), *frame("user")]
  room = style.max_prompt_tokens - len(head) - len(candidates) - len(frame("history")) - len(frame("assistant"))
  if room < 0:
    raise schema.DataError(
      f"max_prompt_tokens: {style.max_prompt_tokens} is too short for user {slate.user!r}: the instructions and "
      f"{len(slate.candidates)} candidates alone need {style.max_prompt_tokens - room}; raise it or show fewer item_fields"
    )
  return head, candidates, room


def history_items(rows: Sequence[int], context: PromptContext, style: PromptStyle, room: int) -> list[list[int]]:
  """Tokens of each of the latest `max_history` items that fit into `room` tokens together, oldest first."""
  items: list[list[int]] = []
  for row in reversed(rows[-style.max_history :]):
    tokens = context.item_tokens(row, style.history_fields, style)
    room -= len(tokens)
    if room < 0:
      break
    items.append(tokens)
  return items[::-1]


def direct_opening(vocabulary: Vocabulary, style: PromptStyle) -> list[int]:
  """What a direct answer's turn begins with: an empty think block, as Qwen3 writes it; in JSON then an empty explanation, which is where
  JSON answers reason.
  """
  think = [vocabulary.special("think"), vocabulary.special("/think")]
  if style.answer == "compact":
    return think
  return think + vocabulary.encode(templates.JSON_OPEN) + vocabulary.encode(templates.JSON_MIDDLE)


def _candidate_tokens(slate: schema.Slate, shown: Sequence[int] | np.ndarray, context: PromptContext, style: PromptStyle) -> list[int]:
  by_slot = style.reference == "slot"
  if by_slot and len(slate.candidates) > context.vocabulary.num_candidates:
    raise schema.DataError(
      f"candidates: {len(slate.candidates)} of user {slate.user!r}, but the vocabulary names {context.vocabulary.num_candidates}; "
      "train it with a larger num_candidates"
    )
  rows = context.catalogue.to_rows(slate.candidates)
  hints, facts = context.hint_tokens(slate, style), context.fact_tokens(slate, style)
  tokens: list[int] = []
  for slot, candidate in enumerate(map(int, shown)):
    if by_slot:
      tokens.append(context.vocabulary.candidate_start + slot)
    tokens += context.item_tokens(rows[candidate], style.item_fields, style)
    tokens += hints[candidate]
    tokens += [token for of in facts[candidate] for token in of]
  return tokens


def _instruction_tokens(context: PromptContext, style: PromptStyle) -> list[int]:
  """The system turn: role, collaborative context, priming if asked, constraints, steps and output format."""
  encode, special = context.text, context.vocabulary.special
  priming = encode(context.priming) if style.knowledge_priming else []
  if style.instructions == "short":
    return encode(templates.SHORT_TASK) + priming
  tokens = encode(templates.ROLE) + encode(templates.CONTEXT)
  if priming:
    tokens = tokens + encode(templates.PRIMING) + priming
  tokens = tokens + encode(templates.QUOTE_SID if style.reference == "sid" else templates.QUOTE_SLOT) + encode(templates.STEPS)
  if style.answer == "json":
    return tokens + encode(templates.FORMAT_JSON)
  frames = [[special(name)] for name in ("think", "/think", "answer", "/answer")]
  for sentence, frame in zip(templates.FORMAT_COMPACT, frames, strict=True):
    tokens = tokens + encode(sentence) + frame
  return tokens
