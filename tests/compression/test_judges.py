"""Judges of compressed histories: the ranker's verdicts by hand, and a chat judge's answers, right and wrong."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.compression.judges import Question, Verdict, make_chat_judge, make_ranker_judge, read_verdict
from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rollout.generate import Rollout

STYLE = PromptStyle(max_prompt_tokens=200)
LENGTH = 128  # of a padded prompt; the full ones have another
LEAVES = ("Toner", "Cleanser", "Mascara", "Razor")


@pytest.fixture(scope="module")
def context():
  vocabulary = Vocabulary.train(
    ["toner cleanser mascara razor best"] * 30, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=4
  )
  items = tuple(Item(f"i{n}", f"{leaf} {n}", "Velora", ("Care", leaf)) for n, leaf in enumerate(LEAVES))
  return PromptContext(Catalogue(items), np.array([[n, n] for n in range(4)]), vocabulary)


def make_judge(context, answers, batch_size=2, metric="auc"):
  """A judge whose ranker answers `answers[TEXT]`, a ranking or None for no answer, by what the history says ("full": anything else)."""
  calls = []
  special = context.vocabulary.special

  def generate(params, tokens, mask, key, sampling, *, row_ids, references):
    calls.append(tokens.shape)
    out = np.full((len(row_ids), 1, 12), context.vocabulary.pad_id, np.int32)
    for place, row in enumerate(tokens):
      row = row.tolist()
      said = context.vocabulary.decode(row[row.index(special("history")) + 1 : row.index(special("candidates"))])
      ranking = answers.get(said, answers["full"])
      completion = [0] * 12 if ranking is None else render_answer(ranking, range(3), None, context.vocabulary, STYLE).tokens
      out[place, 0, : len(completion)] = completion
    return Rollout(tokens, mask, out, out != context.vocabulary.pad_id, np.zeros(out.shape), None, None, None)

  judge = make_ranker_judge(generate, None, context, STYLE, metric=metric, batch_size=batch_size, length=LENGTH)
  return judge, calls


def question(context, text, slate=None):
  return Question(SLATE if slate is None else slate, context.text(text))


SLATE = Slate("u", ("i3", "i0"), ("i0", "i1", "i2"), (0, 1, 0))


def test_the_rankers_verdicts_by_hand(context):
  # The target is candidate 1. Full: second of three, AUC 1/2.
  judge, _ = make_judge(context, {"full": [0, 1, 2], "best": [1, 0, 2], "toner": [0, 2, 1], "razor": [2, 1, 0], "mascara": None})
  verdicts = judge([question(context, text) for text in ("best", "toner", "razor", "mascara")])
  # AUC 1, 0, 1/2 and 0 for no answer: the difference, clipped at half, mapped to 0..1.
  assert [v.quality for v in verdicts] == [1.0, 0.0, 0.5, 0.0]
  assert [v.solvable for v in verdicts] == [True, True, False, False]  # better; same first choice; another one, no better; none
  # 2 IDs, 2 categories, 1 succession: of these the word toner or razor alone.
  assert [v.preservation for v in verdicts] == [0.0, 0.2, 0.2, 0.0]


def test_full_answers_are_asked_once_and_one_shape_is_compiled(context):
  judge, calls = make_judge(context, {"full": [0, 1, 2]})
  for count in (1, 3, 2):
    assert len(judge([question(context, "best")] * count)) == count
  shapes = [shape for shape in calls if shape[1] == LENGTH]
  assert len(calls) - len(shapes) == 1 and set(shapes) == {(2, LENGTH)}
  judge([question(context, "best", dataclasses.replace(SLATE, user="v"))])
  assert len([shape for shape in calls if shape[1] != LENGTH]) == 2
  assert judge([]) == []


def test_quality_by_ndcg_of_graded_labels(context):
  slate = dataclasses.replace(SLATE, labels=(1, 2, 0))
  judge, _ = make_judge(context, {"full": [0, 1, 2], "best": [1, 0, 2]}, metric="ndcg")
  # Gains 1 and 3: the full order has (1 + 3 / log2 3) / (3 + 1 / log2 3), the compressed one is ideal.
  full = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
  verdict = judge([question(context, "best", slate)])[0]
  assert verdict.solvable and verdict.quality == pytest.approx(0.5 + 1 - full)


def test_a_chat_judge_sees_histories_and_candidates_and_no_labels(context):
  asked = []

  class Client:
    def ask(self, questions, read):
      asked.extend(questions)
      return [read('Sure: {"solvable": 1, "preservation": 5, "quality": 9}') for _ in questions]

  judge = make_chat_judge(Client(), context, STYLE)
  assert judge([Question(SLATE, context.text("mascara"))]) == [Verdict(True, 0.5, 0.9)]
  text = asked[0][1]["content"]
  assert "<s_a_3> <s_b_3>" in text and "mascara" in text and text.count("<s_a_") == 5
  relabelled = dataclasses.replace(SLATE, labels=(1, 0, 0))
  judge([Question(relabelled, context.text("mascara"))])
  assert asked[0] == asked[1]


VERDICT = '{"solvable": 1, "preservation": 5, "quality": 9}'


@pytest.mark.parametrize(
  "text",
  [
    "The set {toner, razor} is short {.\n" + VERDICT,
    '{"solvable": 0, "preservation": 1, "quality": 1} was a draft. ' + VERDICT + " {done}",
    '{"verdict": ' + VERDICT + "}",
    VERDICT + ' {"solvable": 1}',
    '{"a":' * 5000 + VERDICT,
  ],
)
def test_the_last_verdict_counts_whatever_braces_stand_around_it(text):
  assert read_verdict(text) == Verdict(True, 0.5, 0.9)


@pytest.mark.parametrize(
  "text",
  [
    "fine",
    "{}",
    '{"solvable": 1, "preservation": 5}',
    '{"solvable": 2, "preservation": 5, "quality": 5}',
    '{"solvable": 1, "preservation": 0, "quality": 5}',
    '{"solvable": 1, "preservation": 5, "quality": 11}',
    '{"solvable": 1, "preservation": "high", "quality": 5}',
    '{"solvable": 1, "preservation": NaN, "quality": 5}',
    '{"solvable": 1, "preservation": 5, quality}',
  ],
)
def test_garbage_is_no_verdict(text):
  with pytest.raises(ValueError):
    read_verdict(text)
