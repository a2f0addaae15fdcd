"""What a reasoning states is read as it was written, and is true only where the evidence says exactly that."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, Item, Slate
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.statements import BOUGHT_AFTER, BRAND, CATEGORY, LAST_CATEGORY, NOTHING, Reason, Statement, are_true, read_reason
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts

FACTS = ("popularity", "brand_share", "next_count_last")
BRANDS = ("Velora", "Aquine", "Velora", None)
CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"Rose {n}", brand, ("Care", "Face Cream" if n else "Toner")) for n, brand in enumerate(BRANDS)))
SLATE = Slate("u", ("i0",), ("i1", "i2", "i3"), (0, 0, 1))
# Counts after the last item: 0, 2, 5.
VALUES = np.array([[0.5, 1.5, 0.0], [1.5, 2.5, np.log1p(2)], [2.5, 3.5, np.log1p(5)]])


class Known:
  """The same values for the one slate that there is, in four buckets of width 1."""

  codes = FactCodes(FACTS, np.tile(np.arange(5.0), (3, 1)))

  def read_slate(self, slate, names):
    if slate != SLATE:
      raise DataError("evidence: another run's")
    return VALUES[:, [FACTS.index(name) for name in names]]


@pytest.fixture(scope="module")
def context():
  shape = {"text_pieces": 500, "num_levels": 2, "codebook_size": 8, "num_candidates": 4, "facts": FACTS, "fact_buckets": 4}
  return PromptContext(CATALOGUE, np.array([[n, n] for n in range(4)]), Vocabulary.train(corpus_texts(CATALOGUE), **shape), facts=Known())


def write(context, *parts):
  """Tokens of texts, slots and (fact, bucket) pairs."""
  vocabulary, tokens = context.vocabulary, []
  for part in parts:
    if isinstance(part, int):
      tokens.append(vocabulary.candidate_start + part)
    elif isinstance(part, tuple):
      tokens.append(vocabulary.fact_word(*part))
    else:
      tokens += context.text(part)
  return tokens


STYLE = PromptStyle(facts=FACTS)


def read(context, tokens, style=STYLE, shown=(0, 1, 2)):
  reason = read_reason(tokens, SLATE, shown, context, style)
  return reason, are_true(reason, SLATE, context, style, Known())


def test_words_are_said_of_the_candidate_named_before_them(context):
  tokens = write(context, "best", 2, ("popularity", 2), ("brand_share", 2), "then", 1, ("popularity", 1))
  reason, true = read(context, tokens)
  assert reason.first == 2
  assert [(of.candidate, of.fact, of.said) for of in reason.statements] == [
    (2, "popularity", "<popular:50%>"),
    (2, "brand_share", "<brand:50%>"),
    (1, "popularity", "<popular:25%>"),
  ]
  assert true == [True, False, True]  # the brand's share is in the bucket above
  ending = context.vocabulary.special("/think")
  assert read(context, [context.vocabulary.special("think"), *tokens, ending, *write(context, 0, ("popularity", 3))])[0] == reason


def test_slots_are_those_of_the_order_shown(context):
  reason, true = read(context, write(context, "best", 0, ("popularity", 2)), shown=(2, 0, 1))
  assert reason.first == 2 and true == [True]


def test_a_name_may_come_behind_its_facts(context):
  reason, true = read(context, write(context, "best", ("popularity", 2), "then", 0, ("popularity", 1), "so", 2))
  assert reason.first == 2 and [of.candidate for of in reason.statements] == [2, 0] and true == [True, False]


def test_what_names_no_candidate_is_false_and_what_states_nothing_is_none(context):
  reason, true = read(context, write(context, "best", 3, ("popularity", 2)))  # the slate has three
  assert reason.first is None and [of.candidate for of in reason.statements] == [None] and true == [False]
  assert read(context, write(context, ("popularity", 2)))[1] == [False]
  for text in ((), ("best best best",), ("Toner then so often",), ("rose", 1)):
    reason, true = read(context, write(context, *text))
    assert reason.statements == () and true == []
  assert read(context, [])[0] == Reason(None, ())


def test_the_scripted_teacher_states_categories_and_a_brand_or_a_count(context):
  style = PromptStyle()
  kinds = {"often": BOUGHT_AFTER, "Velora": BRAND, "new": NOTHING}
  wanted = {("often", 2): True, ("often", 1): False, ("twice", 1): True, ("Velora", 1): True, ("Velora", 0): False, ("Aquine", 0): False}
  wanted |= {("new", 0): True, ("new", 2): False}
  for (word, slot), is_true in wanted.items():
    reason, true = read(context, write(context, "Toner", "then", "Face Cream", "so", word, "best", slot), style)
    assert reason.first == slot and {of.candidate for of in reason.statements} == {slot}
    kind = kinds.get(word, BRAND if word == "Aquine" else BOUGHT_AFTER)
    assert [of.fact for of in reason.statements] == [LAST_CATEGORY, CATEGORY, kind]
    assert true == [True, True, is_true], (word, slot)
  assert read(context, write(context, "Face Cream then Toner so new best", 0), style)[1] == [False, False, True]


def test_the_scripted_teacher_in_sentences(context):
  style = PromptStyle(instructions="full")
  text = "After Toner people often go on to Face Cream. It has been bought right after the last item. The best match is"
  reason, true = read(context, write(context, text, 1, "a Face Cream item, ahead of", 0, "."), style)
  assert reason.first == 1 and {of.candidate for of in reason.statements} == {1}
  assert [of.fact for of in reason.statements] == [LAST_CATEGORY, CATEGORY, BOUGHT_AFTER] and true == [True] * 3
  text = "The user stays with Toner. The user has bought Velora before. The best match is"
  reason, true = read(context, write(context, text, 0, "."), style)
  assert [of.fact for of in reason.statements] == [LAST_CATEGORY, CATEGORY, BRAND] and true == [True, False, False]


def test_facts_in_sentences(context):
  style = PromptStyle(facts=FACTS, fact_form="sentences", instructions="full")
  said = [context.vocabulary.decode(of).removesuffix(";") for of in context.fact_tokens(SLATE, style)[2]]
  tokens = write(context, "The best match is", 2, f"{said[0]};", "bought after the last item 4 times, more than 25 % of candidates;")
  reason, true = read(context, [*tokens, *write(context, "Against", 0, "bought by anyone once;")], style)
  assert [(of.candidate, of.fact) for of in reason.statements] == [(2, "popularity"), (2, "next_count_last")]
  assert reason.statements[0].said == said[0] and true == [True, False]


def test_a_slate_of_another_run_is_refused(context):
  style, other = PromptStyle(facts=FACTS), Slate("v", ("i0",), ("i1", "i2", "i3"), (0, 0, 1))
  with pytest.raises(DataError, match="another run's"):
    are_true(Reason(0, (Statement(0, "popularity", "<popular:0%>"),)), other, context, style, Known())
