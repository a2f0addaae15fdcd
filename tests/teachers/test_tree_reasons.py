"""The tree's reasons are the facts that added most to its scores, in the words of the prompt."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.language.prompts import PromptContext, PromptStyle, render_prompt
from gr2_jax.language.statements import are_true, read_reason
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts
from gr2_jax.teachers.sampling import TraceRequest, check_quotes, rejection_traces, targeted_traces
from gr2_jax.teachers.tree_reasons import TreeView, make_tree_teacher, strongest

FACTS = ("popularity", "age", "brand_share", "upstream_rank", "text_last")
CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"Rose {n}", "Velora", ("Care",)) for n in range(6)))
SLATE = Slate("u", ("i5",), ("i0", "i1", "i2"), (0, 0, 1))
VALUES = np.array([[0.5, 1.5, 2.5, 3.5, 0.5], [1.5, 1.5, 0.5, 2.5, 3.5], [2.5, 0.5, 3.5, 1.5, 1.5]])
VIEW = TreeView(
  np.array([2.0, 1.0, 0.0]),
  # The first over the mean: .4, -.2, .6, .1, .2; over the second: .3, .1, .8, -.3, .6.
  np.array([[0.6, 0.0, 1.0, 0.1, 0.2], [0.3, -0.1, 0.2, 0.4, -0.4], [-0.3, 0.7, 0.0, -0.5, 0.2]]),
)


class Known:
  """The same values for every slate, in four buckets of width 1."""

  codes = FactCodes(FACTS, np.tile(np.arange(5.0), (5, 1)))

  def read_slate(self, slate, names):
    return VALUES[: len(slate.candidates), [FACTS.index(name) for name in names]]


@pytest.fixture(scope="module")
def context():
  shape = {"text_pieces": 400, "num_levels": 2, "codebook_size": 8, "num_candidates": 4, "facts": FACTS, "fact_buckets": 4}
  return PromptContext(CATALOGUE, np.array([[n, n] for n in range(6)]), Vocabulary.train(corpus_texts(CATALOGUE), **shape), facts=Known())


def ask(context, style, slate=SLATE, view=VIEW, shown=(2, 0, 1), **fields):
  request = TraceRequest(slate, np.array(shown), **{"temperature": 0.0, "key": (0,)} | fields)
  return make_tree_teacher(lambda slates: [view] * len(slates), context, style)([request])[0]


def test_three_facts_speak_for_the_first_and_one_against_the_second(context):
  style = PromptStyle(facts=FACTS)
  found = ask(context, style)
  assert found.ranking == (0, 1, 2)
  # The first stands at slot B, the second at C.
  assert context.vocabulary.decode(found.reasoning) == "best <B> <brand:50%> <popular:0%> <text_last:0%> then <C> <brand:0%>"
  prompt = render_prompt(SLATE, [2, 0, 1], context, style).tokens
  for candidate, slot in ((0, 1), (1, 2)):
    start = prompt.index(context.vocabulary.candidate_start + slot)
    quoted = context.fact_tokens(SLATE, style)[candidate]
    assert [token for of in quoted for token in of] == [t for t in prompt[start:] if context.vocabulary.decode([t]).endswith("%>")][:5]
  assert check_quotes(found.reasoning, SLATE, context, style) is None
  reason = read_reason(found.reasoning, SLATE, [2, 0, 1], context, style)
  assert reason.first == 0 and [of.candidate for of in reason.statements] == [0, 0, 0, 1]
  assert are_true(reason, SLATE, context, style, Known()) == [True] * 4


def test_in_sentences_and_by_semantic_id(context):
  facts = ("popularity", "brand_share")
  style = PromptStyle(facts=facts, fact_form="sentences", reference="sid", instructions="full")
  found = ask(context, style, view=VIEW._replace(contributions=VIEW.contributions[:, [0, 2]]))
  text = context.vocabulary.decode(found.reasoning)
  reason = read_reason(found.reasoning, SLATE, [2, 0, 1], context, style)
  assert reason.first == 0 and are_true(reason, SLATE, context, style, Known()) == [True] * 3
  assert text == (
    "The best match is <s_a_0> <s_b_0> 250 % of past items are of its brand, more than 50 % of candidates; bought by anyone 1 time; "
    "Against <s_a_1> <s_b_1> 50 % of past items are of its brand;"
  )
  assert check_quotes(found.reasoning, SLATE, context, style) is None


def test_what_adds_nothing_is_not_named(context):
  view = TreeView(np.zeros(3), np.zeros((3, 5)))
  assert context.vocabulary.decode(ask(context, PromptStyle(facts=FACTS), view=view).reasoning) == "best <B>"
  alone = Slate("u", ("i5",), ("i0",), (1,))
  found = ask(context, PromptStyle(facts=FACTS), alone, TreeView(VIEW.scores[:1], VIEW.contributions[:1]), (0,))
  assert found.ranking == (0,) and context.vocabulary.decode(found.reasoning) == "best <A>"
  assert strongest(np.array([0.1, -1.0, 0.0, 3.0]), 3) == [3, 0]


def test_it_is_sampled_as_any_teacher(context):
  style = PromptStyle(facts=FACTS)
  teacher = make_tree_teacher(lambda slates: [VIEW] * len(slates), context, style)
  slates, shown = [SLATE] * 200, [np.arange(3)] * 200
  traces = rejection_traces(slates, shown, teacher, context, style, seed=0, attempts=1, temperature=1.0)
  share = np.mean([trace.ranking[0] == 2 for trace in traces])
  assert abs(share - np.exp(0.0) / np.exp(VIEW.scores).sum()) < 0.07  # Plackett-Luce
  assert {trace.reason for trace in traces} == {"top1_is_positive", "top1_is_not_positive"}
  assert all(trace.ranking[0] == 2 and trace.accepted for trace in targeted_traces(slates, shown, teacher, context, style, seed=0))
