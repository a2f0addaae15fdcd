"""What the rewriter's texts earn: Eq 11 of every completion, with nothing for one that cannot be used and no question about it."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.compression.judges import Verdict
from gr2_jax.compression.rewriter import RewriterOptions, judge_rewrites
from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary

STYLE = PromptStyle(history_fields=("title", "category"))


@pytest.fixture(scope="module")
def context():
  texts = ["toner cleanser mascara ... best"] * 30
  vocabulary = Vocabulary.train(texts, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=4)
  items = tuple(Item(f"i{n}", f"Long Title of Item {n}", "Velora", ("Care", "Toner")) for n in range(4))
  return PromptContext(Catalogue(items), np.array([[n, n] for n in range(4)]), vocabulary)


def test_rewards_of_a_group_by_hand(context):
  slate = Slate("u", ("i3", "i0"), ("i0", "i1"), (0, 1))
  other = dataclasses.replace(slate, user="v", history=("i1",))
  eos, asked = context.vocabulary.eos_id, []
  sid = context.sid_tokens(3, False)
  texts = [
    [sid + [eos], sid + context.text("...") + [eos], context.sid_tokens(1, False) + [eos]],
    [[eos], sid, context.text("toner") + [eos]],
  ]
  completions = np.full((2, 3, 12), context.vocabulary.pad_id)
  for p, group in enumerate(texts):
    for g, tokens in enumerate(group):
      completions[p, g, : len(tokens)] = tokens

  def judge(questions):
    asked.extend(questions)
    return [Verdict(True, 0.5, 0.9)] * len(questions)

  judgement = judge_rewrites([slate, other], completions, judge, context, STYLE, alpha=0.25)
  # i1 is not in the first history; the second one's texts are empty, have no end, and are fine.
  np.testing.assert_array_equal(judgement.valid, [[True, True, False], [False, False, True]])
  assert [(of.slate.user, of.compressed) for of in asked] == [("u", sid), ("u", texts[0][1][:-1]), ("v", texts[1][2][:-1])]
  original = [sum(len(context.item_tokens(row, STYLE.history_fields, STYLE)) for row in rows) for rows in ([3, 0], [1])]

  def reward(length, original, factor):
    return (0.25 * max(0, 1 - length / original) + 0.75 * (0.2 * 0.5 + 0.8 * 0.9)) * factor

  expected = [
    [reward(2, original[0], 1.0), reward(len(texts[0][1]) - 1, original[0], 0.5), 0.0],
    [0.0, 0.0, reward(len(texts[1][2]) - 1, original[1], 1.0)],
  ]
  np.testing.assert_allclose(judgement.rewards, expected)
  means = {name: metric.sum / metric.count for name, metric in judgement.monitors.items()}
  assert (means["unknown_item_rate"], means["empty_rate"], means["overlong_rate"], means["wrong_format_rate"]) == (1 / 6, 1 / 6, 1 / 6, 0.0)
  assert (means["solvable_rate"], means["quality"], means["alpha"]) == pytest.approx((1.0, 0.9, 0.25))


@pytest.mark.parametrize(
  ("key", "value"), [("alpha", (0.3, 1.5)), ("alpha", (0.3,)), ("group", 1), ("temperature", 0.0), ("temperature", float("inf"))]
)
def test_options_that_cannot_hold_are_named(key, value):
  with pytest.raises(ValueError, match=f"^{key}: "):
    RewriterOptions(**{key: value})
