"""The scripted teacher: no look at labels, rankings that follow its weights, reasoning that fits its choice."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data import schema
from gr2_jax.evidence.patterns import fit_patterns, pattern_features
from gr2_jax.language import prompts, vocabulary
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.teachers import sampling, scripted

DAY = 86_400
LEAVES = ("Shampoo", "Conditioner", "Toner", "Cleanser")
ITEMS = (
  *(schema.Item(f"i{n}", f"Velora {LEAVES[n % 4]} {n}", ("Velora", "Aquine")[n // 4 % 2], ("Care", LEAVES[n % 4])) for n in range(12)),
  schema.Item("bare", ""),
)
CATALOGUE = schema.Catalogue(ITEMS)
# Shampoo -> Conditioner on days 1 and 2, Shampoo -> Toner on day 2 and again on day 9.
HISTORIES = (
  schema.History("a", ("i0", "i1"), (0, DAY)),
  schema.History("b", ("i4", "i5"), (0, 2 * DAY)),
  schema.History("c", ("i0", "i2"), (0, 2 * DAY)),
  schema.History("d", ("i0", "i6"), (0, 9 * DAY)),
)
SLATE = schema.Slate("u", ("i3", "i0"), ("i7", "i5", "i2", "bare"), (0, 0, 0, 1), timestamp=5 * DAY)
SHOWN = np.array([2, 0, 3, 1])


@pytest.fixture(scope="module")
def vocab():
  return vocabulary.Vocabulary.train(vocabulary.corpus_texts(CATALOGUE), text_pieces=800, num_levels=2, codebook_size=16, num_candidates=4)


@pytest.fixture(scope="module")
def context(vocab):
  return prompts.PromptContext(CATALOGUE, np.array([[n % 16, 3 * n % 16] for n in range(13)]), vocab)


@pytest.fixture(scope="module")
def patterns():
  return fit_patterns(HISTORIES, CATALOGUE)


def ask(context, patterns, style, temperature=0.0, target=None, slate=SLATE, key=(0, 0, 0), weights=None):
  teacher = scripted.make_scripted_teacher(patterns, context, style, weights)
  return teacher([sampling.TraceRequest(slate, SHOWN, temperature, key, target)])[0]


def test_no_label_is_seen(context, patterns):
  for labels in ((1, 0, 0, 0), (0, 0, 1, 2)):
    relabelled = dataclasses.replace(SLATE, labels=labels)
    assert ask(context, patterns, PromptStyle(), 0.8, slate=relabelled) == ask(context, patterns, PromptStyle(), 0.8)


def test_the_greedy_ranking_follows_the_weights(context, patterns):
  # Scores with weights (complement 2, taste 1, brand 1.5, after 1.5, upstream 1):
  # i7 .474 + 1 = 1.47; i5 1.333 + .667 = 2; i2 .667 + 1.5 + .5 + .333 = 3; bare 0.
  assert ask(context, patterns, PromptStyle()).ranking == (2, 1, 0, 3)
  only_upstream = scripted.TeacherWeights(complement=0, taste=0, brand=0, after=0, upstream=1)
  assert ask(context, patterns, PromptStyle(), weights=only_upstream).ranking == (0, 1, 2, 3)


def test_samples_are_plackett_luce_at_the_temperature(context, patterns):
  firsts = [ask(context, patterns, PromptStyle(), 0.8, key=(7, 0, n)).ranking[0] for n in range(800)]
  scores = pattern_features(SLATE, patterns, CATALOGUE) @ [2, 1, 1.5, 1.5, 1]
  expected = np.exp(scores / 0.8) / np.exp(scores / 0.8).sum()
  np.testing.assert_allclose(np.bincount(firsts, minlength=4) / 800, expected, atol=0.07)  # four standard errors of 1/2


def test_short_reasoning_word_by_word(context, patterns, vocab):
  # i2 (slot 0) has a brand of the history, i7 (slot 1) and the bare item (slot 2) have not; i6 followed i0 once before day 10.
  assert vocab.decode(ask(context, patterns, PromptStyle()).reasoning) == "Shampoo then Toner so Velora best <A>"
  assert vocab.decode(ask(context, patterns, PromptStyle(), target=0).reasoning) == "Shampoo then Cleanser so new best <B>"
  assert vocab.decode(ask(context, patterns, PromptStyle(), target=3).reasoning) == "Shampoo then other so new best <C>"
  late = dataclasses.replace(SLATE, candidates=("i7", "i5", "i2", "i6"), timestamp=10 * DAY)
  assert vocab.decode(ask(context, patterns, PromptStyle(), target=3, slate=late).reasoning) == "Shampoo then Toner so once best <C>"
  by_sid = ask(context, patterns, PromptStyle(reference="sid"))
  assert vocab.decode(by_sid.reasoning) == "Shampoo then Toner so Velora best <s_a_2> <s_b_6>"


def test_long_reasoning_has_three_steps_and_quotes_every_item(context, patterns, vocab):
  proposal = ask(context, patterns, PromptStyle(instructions="full", answer="json", reference="sid"))
  assert vocab.decode(proposal.reasoning) == (
    "The user bought Cleanser, Shampoo and the last purchase was Shampoo <s_a_0> <s_b_0> After Shampoo people often go on to Toner. "
    "The user has bought Velora before. The best match is <s_a_2> <s_b_6> a Toner item, ahead of <s_a_5> <s_b_15> ."
  )


@pytest.mark.parametrize("target", range(4))
def test_a_shown_answer_is_put_first_and_explained(context, patterns, target):
  proposal = ask(context, patterns, PromptStyle(), 0.8, target=target)
  assert proposal.ranking[0] == target and sorted(proposal.ranking) == [0, 1, 2, 3]
  assert proposal.reasoning[-1] == context.vocabulary.candidate_start + list(SHOWN).index(target)
