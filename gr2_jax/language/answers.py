"""Answers: writing a ranking as a completion, and reading a completion strictly. Nothing is repaired.

Compact: `[<think> reasoning </think>] <answer> reference ... </answer> <eos>`, a reference being a candidate's name or its SID.
JSON: `[<think> ... </think>] {"explanation": "...", "recommendations": ["<A>", ...]} <eos>` as text, where a string holds the
surface form of a candidate's name or of its SID; tokens and their spelled-out surface forms read the same.
The think block may be empty or left out. In a direct style the completion is what follows `prompts.direct_opening`: the answer alone.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from gr2_jax.language import templates
from gr2_jax.language.prompts import PromptStyle, direct_opening
from gr2_jax.language.vocabulary import Vocabulary

REASONING, ANSWER = 1, 2
Reference = tuple[int, ...] | tuple[str, ...]  # what names a candidate: its tokens, or in JSON their surface forms
ERROR_KINDS = ("wrong_format", "missing", "repeated", "unknown_item", "overlong")
VERDICTS = (None, *ERROR_KINDS)  # where verdicts are numbers they are places in this tuple: 0 is a valid answer
NOT_FINITE = "not_finite"  # no fault of the text: it was drawn from numbers that are none


@dataclasses.dataclass(frozen=True)
class Completion:
  """Tokens of an answer up to and including eos; `parts` says of each token whether it is REASONING (1) or ANSWER (2)."""

  tokens: list[int]
  parts: list[int]


@dataclasses.dataclass(frozen=True)
class Answer:
  """A full permutation of the candidates (indices, best first), or None and the kind of error.

  `reasoning_length` counts the tokens inside the think block, and for JSON those of the explanation too.
  """

  ranking: tuple[int, ...] | None
  error: str | None
  reasoning_length: int


class _AnswerError(Exception):
  """Leaves the parser with the error kind as its message."""


def render_answer(
  ranking: Sequence[int] | np.ndarray,
  shown: Sequence[int] | np.ndarray,
  reasoning: Sequence[int] | None,
  vocabulary: Vocabulary,
  style: PromptStyle,
  codes: np.ndarray | None = None,
) -> Completion:
  """The completion that answers with `ranking [K]` (candidate indices) for candidates shown as `shown [K]`.

  `reasoning`: text, candidate and SID tokens; becomes the think block (compact; None leaves the block out) or the explanation (JSON).
  A direct style leaves it out.
  `codes [K, levels]` of the candidates by candidate index, needed when the style refers by SID.
  """
  references = reference_tokens(shown, vocabulary, style, codes)
  slots = {int(candidate): slot for slot, candidate in enumerate(shown)}
  ordered = [references[slots[int(candidate)]] for candidate in ranking]
  if style.answer == "json":
    return _render_json(ordered, reasoning or (), vocabulary, style.direct)
  if style.direct:
    reasoning = None
  think = [] if reasoning is None else [vocabulary.special("think"), *map(int, reasoning), vocabulary.special("/think")]
  answer = [vocabulary.special("answer"), *(t for r in ordered for t in r), vocabulary.special("/answer"), vocabulary.eos_id]
  return Completion(think + answer, [REASONING] * len(think) + [ANSWER] * len(answer))


def parse_answer(
  tokens: Sequence[int] | np.ndarray,
  shown: Sequence[int] | np.ndarray,
  vocabulary: Vocabulary,
  style: PromptStyle,
  codes: np.ndarray | None = None,
) -> Answer:
  """Reads a completion (a row of ids; all after the first eos is ignored) as a ranking of the candidates `shown [K]`.

  Error kinds: overlong (no eos), wrong_format, unknown_item (names what is not a candidate), repeated, missing; the first that applies.
  `codes [K, levels]` by candidate index, needed when the style refers by SID. Candidates that share a SID are ambiguous: its first
  mention is the one shown first, the next mention the next one; one mention more than there are such candidates is `repeated`.
  """
  tokens = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
  if vocabulary.eos_id not in tokens:
    return Answer(None, "overlong", 0)
  tokens = tokens[: tokens.index(vocabulary.eos_id)]
  if style.direct:
    tokens = direct_opening(vocabulary, style) + tokens
  reasoning_length = 0
  try:
    thinking, body = _split_think(tokens, vocabulary)
    reasoning_length = len(thinking)
    references = reference_tokens(shown, vocabulary, style, codes)
    if style.answer == "json":
      explanation, mentions = _read_json(body, vocabulary)
      reasoning_length += len(vocabulary.encode(explanation))
      slots = _match(mentions, [tuple(vocabulary.surface(token) for token in reference) for reference in references])
    else:
      slots = _match(_read_compact(body, vocabulary, style), references)
  except _AnswerError as error:
    return Answer(None, str(error), reasoning_length)
  return Answer(tuple(int(shown[slot]) for slot in slots), None, reasoning_length)


def reference_tokens(
  shown: Sequence[int] | np.ndarray, vocabulary: Vocabulary, style: PromptStyle, codes: np.ndarray | None
) -> list[tuple[int, ...]]:
  """Tokens that name the candidate at each slot."""
  if style.reference == "slot":
    return [(vocabulary.candidate_start + slot,) for slot in range(len(shown))]
  if codes is None:
    raise ValueError("codes: needed when answers refer to candidates by SID; pass those of the slate's candidates")
  sids = [vocabulary.sid_tokens(codes[candidate]) for candidate in shown]
  if style.sid_markers:
    sids = [[vocabulary.special("sid"), *sid, vocabulary.special("/sid")] for sid in sids]
  return [tuple(sid) for sid in sids]


def bare_answer_length(num_candidates: int, vocabulary: Vocabulary, style: PromptStyle) -> int:
  """Tokens of an answer about so many candidates without any reasoning, eos included; in a direct style of all there are."""
  order, codes = range(num_candidates), np.zeros((num_candidates, vocabulary.num_levels), int)
  return len(render_answer(order, order, None, vocabulary, style, codes).tokens)


def direct_answer_length(num_candidates: int, vocabulary: Vocabulary, style: PromptStyle) -> int:
  """Tokens of a direct answer about so many candidates, eos included."""
  return bare_answer_length(num_candidates, vocabulary, dataclasses.replace(style, direct=True))


def _render_json(ordered: list[tuple[int, ...]], explanation: Sequence[int], vocabulary: Vocabulary, direct: bool) -> Completion:
  opening, closing = vocabulary.encode(templates.JSON_OPEN), vocabulary.encode(templates.JSON_CLOSE)
  reasoning = _escape(explanation, vocabulary)
  answer = vocabulary.encode(templates.JSON_MIDDLE)
  between = vocabulary.encode(templates.JSON_BETWEEN)
  for place, reference in enumerate(ordered):
    answer += (between if place else []) + list(reference)
  answer += [*closing, vocabulary.eos_id]
  if direct:
    answer = answer[len(vocabulary.encode(templates.JSON_MIDDLE)) :]
    return Completion(answer, [ANSWER] * len(answer))
  parts = [ANSWER] * len(opening) + [REASONING] * len(reasoning) + [ANSWER] * len(answer)
  return Completion(opening + reasoning + answer, parts)


def _escape(tokens: Sequence[int], vocabulary: Vocabulary) -> list[int]:
  """`tokens` with their text written as inside a JSON string; candidate and SID tokens stay as they are."""
  escaped: list[int] = []
  run: list[int] = []
  for token in [*map(int, tokens), None]:
    if token is not None and 0 <= token < vocabulary.new_token_start:
      run.append(token)
      continue
    if run:
      # Encoding normalises, and a full-width quote would become a real one after the escape: so normalise first.
      text = vocabulary.decode(vocabulary.encode(vocabulary.decode(run)))
      escaped += vocabulary.encode(json.dumps(text, ensure_ascii=False)[1:-1])
      run = []
    if token is not None:
      escaped.append(token)
  return escaped


def _split_think(tokens: list[int], vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
  """(inside of the think block or nothing, what follows)."""
  if not tokens or tokens[0] != vocabulary.special("think"):
    return [], tokens
  closing = vocabulary.special("/think")
  if closing not in tokens:
    raise _AnswerError("wrong_format")
  end = tokens.index(closing)
  _check_content(tokens[1:end], vocabulary)
  return tokens[1:end], tokens[end + 1 :]


def _check_content(tokens: list[int], vocabulary: Vocabulary) -> None:
  """Reasoning and JSON hold text, candidates and SIDs, no other frame and no unused id."""
  if not vocabulary.forbidden_ids.isdisjoint(tokens) or (tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary.used_size):
    raise _AnswerError("wrong_format")


def _read_compact(body: list[int], vocabulary: Vocabulary, style: PromptStyle) -> list[tuple[int, ...]]:
  """The mentions between `<answer>` and `</answer>`, each a tuple of tokens."""
  if len(body) < 2 or body[0] != vocabulary.special("answer") or body[-1] != vocabulary.special("/answer"):
    raise _AnswerError("wrong_format")
  inner = body[1:-1]
  if style.reference == "slot":
    if any(not vocabulary.candidate_start <= token < vocabulary.sid_start for token in inner):
      raise _AnswerError("wrong_format")
    return [(token,) for token in inner]
  length = vocabulary.num_levels + 2 * style.sid_markers
  mentions = [tuple(inner[start : start + length]) for start in range(0, len(inner), length)]
  if not all(_is_sid(mention, vocabulary, style) for mention in mentions):
    raise _AnswerError("wrong_format")
  return mentions


def _is_sid(mention: tuple[int, ...], vocabulary: Vocabulary, style: PromptStyle) -> bool:
  """Whether the tokens are one code of each level in order, between the markers if the style has them."""
  if style.sid_markers:
    if mention[0] != vocabulary.special("sid") or mention[-1] != vocabulary.special("/sid"):
      return False
    mention = mention[1:-1]
  levels = [(token - vocabulary.sid_start) // vocabulary.codebook_size for token in mention]
  return levels == list(range(vocabulary.num_levels))


def _read_json(body: list[int], vocabulary: Vocabulary) -> tuple[str, list[tuple[str, ...]]]:
  """(explanation, mentions as tuples of surface forms) of a JSON object with exactly the two keys."""
  _check_content(body, vocabulary)
  try:
    pairs = json.loads(vocabulary.decode(body), object_pairs_hook=list)
  except (ValueError, RecursionError):
    raise _AnswerError("wrong_format") from None
  # A list of pairs, so that a key given twice is seen; an array of two strings is no pair.
  if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
    raise _AnswerError("wrong_format")
  fields = dict(pairs)
  if len(pairs) != 2 or set(fields) != {"explanation", "recommendations"}:
    raise _AnswerError("wrong_format")
  explanation, mentions = fields["explanation"], fields["recommendations"]
  if not isinstance(explanation, str) or not isinstance(mentions, list) or not all(isinstance(m, str) for m in mentions):
    raise _AnswerError("wrong_format")
  return explanation, [tuple(mention.split()) for mention in mentions]


def _match(mentions: Sequence[Reference], references: Sequence[Reference]) -> list[int]:
  """Slots in the order of the mentions; raises unless each reference is mentioned exactly as often as it names a slot."""
  slots: dict[Reference, list[int]] = {}
  for slot, reference in enumerate(references):
    slots.setdefault(reference, []).append(slot)
  if any(mention not in slots for mention in mentions):
    raise _AnswerError("unknown_item")
  ordered: list[int] = []
  for mention in mentions:
    if not slots[mention]:
      raise _AnswerError("repeated")
    ordered.append(slots[mention].pop(0))
  if len(ordered) < len(references):
    raise _AnswerError("missing")
  return ordered
