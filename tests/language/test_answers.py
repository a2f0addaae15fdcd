"""Answers are read strictly: round trips, each error kind, and a fuzz that never finds a crash or a repaired answer."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.language import answers
from gr2_jax.language.prompts import PromptStyle, direct_opening

STYLES = [
  PromptStyle(answer=answer, reference=reference, sid_markers=markers)
  for answer, reference, markers in itertools.product(("compact", "json"), ("slot", "sid"), (False, True))
]
CODES = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0], [7, 7, 7]])
style_ids = [f"{s.answer}-{s.reference}-{'markers' if s.sid_markers else 'bare'}" for s in STYLES]


def parse(tokens, vocab, style, shown=(0, 1, 2, 3), codes=CODES):
  return answers.parse_answer(tokens, shown, vocab, style, codes)


def compact(vocab, inner, think=()):
  return [*think, vocab.special("answer"), *inner, vocab.special("/answer"), vocab.eos_id]


@pytest.mark.parametrize("style", STYLES, ids=style_ids)
@given(ranking=st.permutations(range(4)), shown=st.permutations(range(4)), text=st.text(max_size=30), pads=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_render_then_parse_is_the_ranking(vocab, style, ranking, shown, text, pads):
  reasoning = [*vocab.encode(text), vocab.candidate_start + 1, *vocab.sid_tokens([1, 2, 3]), *vocab.encode('then "so"')]
  completion = answers.render_answer(ranking, shown, reasoning, vocab, style, CODES)
  row = np.array(completion.tokens + [vocab.pad_id] * pads, np.int32)
  answer = parse(row, vocab, style, shown)
  assert answer.error is None and answer.ranking == tuple(ranking)
  assert len(completion.parts) == len(completion.tokens) and set(completion.parts) == {answers.REASONING, answers.ANSWER}


def test_the_compact_completion_word_by_word(vocab):
  reasoning = [*vocab.encode("Shampoo then Toner so new best"), vocab.candidate_start]
  completion = answers.render_answer([3, 0, 2, 1], [1, 3, 0, 2], reasoning, vocab, PromptStyle())
  # Candidate 3 stands at slot 1 (B), 0 at slot 2 (C), 2 at slot 3 (D), 1 at slot 0 (A).
  assert vocab.decode(completion.tokens) == "<think> Shampoo then Toner so new best <A> </think> <answer> <B> <C> <D> <A> </answer> <eos>"
  assert completion.parts == [1] * 9 + [2] * 7
  answer = answers.parse_answer(completion.tokens, [1, 3, 0, 2], vocab, PromptStyle())
  assert answer == answers.Answer((3, 0, 2, 1), None, 7)


def test_the_json_completion_is_a_json_object(vocab):
  completion = answers.render_answer([1, 0], [0, 1], vocab.encode('say "hi" \\ now'), vocab, PromptStyle(answer="json"))
  assert completion.tokens[-1] == vocab.eos_id
  fields = json.loads(vocab.decode(completion.tokens[:-1]))
  assert fields["explanation"].strip() == 'say "hi" \\ now'
  assert [name.strip() for name in fields["recommendations"]] == ["<B>", "<A>"]
  written = [token for token, part in zip(completion.tokens, completion.parts, strict=True) if part == answers.REASONING]
  assert vocab.decode(written) == 'say \\"hi\\" \\\\ now'


@pytest.mark.parametrize("block", ["none", "empty"])
@pytest.mark.parametrize("style", STYLES, ids=style_ids)
def test_direct_answers_parse(vocab, style, block):
  completion = answers.render_answer([2, 0, 1, 3], [0, 1, 2, 3], None, vocab, style, CODES).tokens
  think = [vocab.special("think"), vocab.special("/think")] if block == "empty" else []
  assert parse(think + completion, vocab, style) == answers.Answer((2, 0, 1, 3), None, 0)


@pytest.mark.parametrize("style", STYLES, ids=style_ids)
def test_a_direct_completion_is_the_rest_of_an_answer_without_reasoning(vocab, style):
  direct = dataclasses.replace(style, direct=True)
  completion = answers.render_answer([2, 0, 1, 3], [0, 1, 2, 3], vocab.encode("best"), vocab, direct, CODES)
  whole = answers.render_answer([2, 0, 1, 3], [0, 1, 2, 3], [], vocab, style, CODES).tokens
  think = [] if style.answer == "compact" else [vocab.special("think"), vocab.special("/think")]
  assert direct_opening(vocab, style) + completion.tokens == think + whole
  assert set(completion.parts) == {answers.ANSWER}
  assert len(completion.tokens) == answers.direct_answer_length(4, vocab, style)
  assert parse(completion.tokens, vocab, direct) == answers.Answer((2, 0, 1, 3), None, 0)
  for late_reasoning in ([], vocab.encode("best")):
    thinks = [vocab.special("think"), *late_reasoning, vocab.special("/think")]
    assert parse(thinks + completion.tokens, vocab, direct).error == "wrong_format"


def test_each_error_kind_of_compact_answers(vocab):
  a, b, c, d, e = (vocab.candidate_start + slot for slot in range(5))
  style = PromptStyle()
  think, unthink, word = vocab.special("think"), vocab.special("/think"), vocab.encode("best")
  cases = {
    "overlong": [compact(vocab, [a, b, c, d])[:-1], [], word * 30],
    "missing": [compact(vocab, [a, b, c]), compact(vocab, [])],
    "repeated": [compact(vocab, [a, b, c, c]), compact(vocab, [a, b, c, d, a]), compact(vocab, [a, a])],
    "unknown_item": [compact(vocab, [a, b, c, e]), compact(vocab, [a, a, e])],
    "wrong_format": [
      [vocab.eos_id],
      [a, b, c, d, vocab.eos_id],
      compact(vocab, [a, b, c, d])[:-2] + [vocab.eos_id],
      compact(vocab, [a, b, *word, c, d]),
      compact(vocab, [a, b, c, d], [think, *word]),
      compact(vocab, [a, b, c, d], [*word]),
      compact(vocab, [a, b, c, d], [think, vocab.special("user"), unthink]),
      compact(vocab, [a, b, c, d], [think, vocab.used_size, unthink]),
      compact(vocab, [a, b, c, d], [think, unthink, think, unthink]),
      compact(vocab, [a, b, c, d, vocab.pad_id]),
      [*compact(vocab, [a, b, c, d])[:-1], *word, vocab.eos_id],
    ],
  }
  for kind, rows in cases.items():
    for row in rows:
      answer = parse(row, vocab, style)
      assert (answer.error, answer.ranking) == (kind, None), (kind, vocab.decode(row))


def test_each_error_kind_of_answers_by_sid(vocab):
  style = PromptStyle(reference="sid")
  sids = [vocab.sid_tokens(code) for code in CODES]
  everything = [token for sid in sids for token in sid]
  stranger = vocab.sid_tokens([5, 5, 5])
  assert parse(compact(vocab, everything), vocab, style).ranking == (0, 1, 2, 3)
  assert parse(compact(vocab, everything[:9]), vocab, style).error == "missing"
  assert parse(compact(vocab, sids[0] + sids[0] + sids[1] + sids[2]), vocab, style).error == "repeated"
  assert parse(compact(vocab, sids[0] + sids[1] + sids[2] + stranger), vocab, style).error == "unknown_item"
  assert parse(compact(vocab, everything[:-1]), vocab, style).error == "wrong_format"
  assert parse(compact(vocab, sids[0][::-1] + sids[1] + sids[2] + sids[3]), vocab, style).error == "wrong_format"
  with pytest.raises(ValueError, match="codes"):
    answers.parse_answer(compact(vocab, []), [0, 1], vocab, style)


def test_candidates_that_share_a_sid_are_taken_in_shown_order(vocab):
  codes = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]])
  same, other = vocab.sid_tokens([0, 0, 0]), vocab.sid_tokens([1, 1, 1])
  style = PromptStyle(reference="sid")
  # Shown: candidate 2, then 1, then 0: the first mention of the shared SID is candidate 2.
  assert parse(compact(vocab, same + other + same), vocab, style, [2, 1, 0], codes).ranking == (2, 1, 0)
  assert parse(compact(vocab, same + same + other), vocab, style, [0, 1, 2], codes).ranking == (0, 2, 1)
  assert parse(compact(vocab, same + same + same), vocab, style, [0, 1, 2], codes).error == "repeated"


@pytest.mark.parametrize(
  ("text", "error"),
  [
    ('{"explanation": "x", "recommendations": ["<B>", "<A>"]}', None),
    ('{"recommendations": ["<B>", "<A>"], "explanation": ""}', None),
    ('{"explanation": "x", "recommendations": ["<B>"]}', "missing"),
    ('{"explanation": "x", "recommendations": ["<B>", "<B>"]}', "repeated"),
    ('{"explanation": "x", "recommendations": ["<B>", "<C>"]}', "unknown_item"),
    ('{"explanation": "x", "recommendations": ["B", "A"]}', "unknown_item"),
    ('{"explanation": "x", "recommendations": ["<B>", 1]}', "wrong_format"),
    ('{"explanation": 3, "recommendations": ["<B>", "<A>"]}', "wrong_format"),
    ('{"explanation": "x", "recommendations": "<B> <A>"}', "wrong_format"),
    ('{"recommendations": ["<B>", "<A>"]}', "wrong_format"),
    ('{"explanation": "x", "explanation": "y", "recommendations": ["<B>", "<A>"]}', "wrong_format"),
    ('{"explanation": "x", "recommendations": ["<B>", "<A>"], "more": 1}', "wrong_format"),
    ('{"explanation": "x", "recommendations": ["<B>", "<A>"]} thanks', "wrong_format"),
    ('```{"explanation": "x", "recommendations": ["<B>", "<A>"]}', "wrong_format"),
    ('[["explanation", "x"], ["recommendations", ["<B>", "<A>"]]]', "wrong_format"),
    ("[" * 5000, "wrong_format"),
    ("null", "wrong_format"),
    ("", "wrong_format"),
  ],
)
def test_json_written_out_as_text(vocab, text, error):
  answer = parse([*vocab.encode(text), vocab.eos_id], vocab, PromptStyle(answer="json"), (0, 1))
  assert (answer.error, answer.ranking) == (error, None if error else (1, 0))


@pytest.mark.parametrize("style", STYLES, ids=style_ids)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_fuzzed_completions_never_raise_and_are_valid_only_as_permutations(vocab, style, data):
  shown = data.draw(st.permutations(range(4)))
  whole = answers.render_answer(data.draw(st.permutations(range(4))), shown, vocab.encode("so best"), vocab, style, CODES).tokens
  useful = sorted({*whole, vocab.pad_id, vocab.special("user"), vocab.candidate_start + 5, *vocab.sid_tokens([2, 2, 2])})
  ids = st.one_of(st.sampled_from(useful), st.integers(-3, vocab.size + 3))
  tokens = list(whole)
  for _ in range(data.draw(st.integers(0, 3))):
    at = data.draw(st.integers(0, max(len(tokens) - 1, 0)))
    change = data.draw(st.sampled_from(("insert", "replace", "delete", "swap", "noise")))
    if change == "noise":
      tokens = data.draw(st.lists(ids, max_size=20))
    elif change == "insert":
      tokens.insert(at, data.draw(ids))
    elif tokens and change == "replace":
      tokens[at] = data.draw(ids)
    elif tokens and change == "swap":
      tokens[at], tokens[0] = tokens[0], tokens[at]
    elif tokens:
      del tokens[at]
  answer = parse(tokens, vocab, style, shown)
  assert (answer.ranking is None) == (answer.error in answers.ERROR_KINDS)
  if answer.ranking is not None:
    assert sorted(answer.ranking) == [0, 1, 2, 3] and answer.error is None
    rendered = answers.render_answer(answer.ranking, shown, None, vocab, style, CODES).tokens
    assert parse(rendered, vocab, style, shown).ranking == answer.ranking
