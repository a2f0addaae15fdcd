"""Compressed histories: the rules, what a rewriter may write, and what of a history is still there."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.compression import rules as compress
from gr2_jax.data import schema
from gr2_jax.language.prompts import PromptStyle, render_prompt

STYLE = PromptStyle(history_fields=("title", "category", "brand"), max_history=6, max_prompt_tokens=400)
# Rows 0 and 4 are shampoos, 1 and 5 conditioners, 2 a toner.
SHAMPOO, CONDITIONER, TONER, SHAMPOO_2, CONDITIONER_2 = 0, 1, 2, 4, 5


def sids(context, *rows):
  return [token for row in rows for token in context.sid_tokens(row, False)]


def test_rules_keep_ids_and_categories_in_order(context):
  expected = [*sids(context, TONER), *context.text("Toner"), *sids(context, SHAMPOO), *context.text("Shampoo")]
  assert compress.compress_by_rules([TONER, SHAMPOO], context, STYLE, budget=100) == expected


def test_rules_merge_repeats(context):
  # The first shampoo was bought again at the end; the two conditioners share one name.
  rows = [SHAMPOO, CONDITIONER, CONDITIONER_2, SHAMPOO]
  expected = [*sids(context, CONDITIONER, CONDITIONER_2), *context.text("Conditioner"), *sids(context, SHAMPOO), *context.text("Shampoo")]
  assert compress.compress_by_rules(rows, context, STYLE, budget=100) == expected


@pytest.mark.parametrize("categories", [True, False])
def test_rules_drop_the_oldest_first_and_never_exceed_the_budget(context, categories):
  rows = [SHAMPOO, TONER, CONDITIONER, SHAMPOO_2]
  whole = compress.compress_by_rules(rows, context, STYLE, budget=100, categories=categories)
  for budget in range(3, len(whole) + 1):
    short = compress.compress_by_rules(rows, context, STYLE, budget=budget, categories=categories)
    quoted = [token for token in short if token >= context.vocabulary.sid_start]
    assert 0 < len(short) <= budget
    assert quoted == sids(context, *rows)[-len(quoted) :] and len(quoted) % 3 == 0
    assert compress.read_rewrite([*short, context.vocabulary.eos_id], rows, context, STYLE) == (short, "ok")
  assert compress.compress_by_rules(rows, context, STYLE, budget=len(whole), categories=categories) == whole
  assert categories or whole == sids(context, *rows)


@pytest.mark.parametrize("fields", [(), ("title", "category", "brand")])
def test_shortened_at_random_a_history_is_any_number_of_its_latest_items_and_never_longer(context, slate, fields):
  style = dataclasses.replace(STYLE, history_fields=fields, max_history=3)
  slate = dataclasses.replace(slate, history=("i3", "i0", "i5", "i2"))
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(100):
    short = compress.shorten_at_random(slate, context, style, rng)
    quoted = [token for token in short if token >= context.vocabulary.sid_start]
    assert quoted == sids(context, 0, 5, 2)[9 - len(quoted) :]
    assert len(short) <= sum(len(context.item_tokens(row, fields, style)) for row in (0, 5, 2))
    seen.add(len(quoted) // 3)
  assert seen == {0, 1, 2, 3} if fields else seen > {0, 1}  # codes alone leave no room for categories


def test_no_history_and_a_budget_of_nothing(context):
  assert compress.compress_by_rules([], context, STYLE, budget=10) == []
  for budget in (0, 2):
    with pytest.raises(ValueError, match=f"budget: {budget} "):
      compress.compress_by_rules([SHAMPOO], context, STYLE, budget=budget)


def test_the_original_is_what_the_prompt_shows(context, slate):
  prompt = render_prompt(slate, range(4), context, STYLE)
  assert render_prompt(slate, range(4), context, STYLE, compress.original_tokens(slate, context, STYLE)) == prompt
  assert len(compress.original_tokens(slate, context, STYLE)) > len(sids(context, 3, 0)) + 4
  long = dataclasses.replace(slate, history=("i3", "i0") * 40)
  assert len(compress.prompt_rows(long, context, STYLE)) == STYLE.max_history
  assert len(compress.original_tokens(long, context, dataclasses.replace(STYLE, max_prompt_tokens=30))) <= 30


def test_a_compressed_history_stands_in_the_prompt_or_is_refused(context, slate):
  short = compress.compress_by_rules([3, 0], context, STYLE, budget=20)
  tokens = render_prompt(slate, range(4), context, STYLE, short).tokens
  start = tokens.index(context.vocabulary.special("history")) + 1
  assert tokens[start : start + len(short) + 1] == [*short, context.vocabulary.special("candidates")]
  with pytest.raises(schema.DataError, match=r"max_prompt_tokens: 400 leave \d+ for the history of user 'u', but the one given has 500"):
    render_prompt(slate, range(4), context, STYLE, [7] * 500)


def test_what_a_rewriter_may_not_write(context):
  vocabulary, rows = context.vocabulary, [SHAMPOO, TONER]
  eos, ids = vocabulary.eos_id, sids(context, SHAMPOO)
  cases = {
    "overlong": ids,
    "empty": [eos, *ids],
    "wrong_format": [*ids, vocabulary.special("answer"), eos],
    "unknown_item": [*sids(context, CONDITIONER), eos],
  }
  for outcome, tokens in cases.items():
    assert compress.read_rewrite(tokens, rows, context, STYLE) == ([], outcome)
  for tokens in ([vocabulary.candidate_start], [-1], [vocabulary.size - 1], [vocabulary.special("sid"), *ids, vocabulary.special("/sid")]):
    assert compress.read_rewrite([*tokens, eos], rows, context, STYLE)[1] == "wrong_format"
  for tokens in (ids[:2], ids[::-1], [*ids, ids[0]], [*ids[:2], *context.text("Toner"), ids[2]]):
    assert compress.read_rewrite([*tokens, eos], rows, context, STYLE)[1] == "unknown_item"
  text = [*ids, *context.text("then"), *ids, *sids(context, TONER)]
  assert compress.read_rewrite([*text, eos, 5], rows, context, STYLE) == (text, "ok")
  marked = dataclasses.replace(STYLE, sid_markers=True)
  assert compress.read_rewrite([*context.sid_tokens(TONER, True), eos], rows, context, marked)[1] == "ok"


def test_facts_by_hand(context):
  rows = [SHAMPOO, TONER, CONDITIONER]  # 3 IDs, 3 categories, 2 successions
  assert compress.kept_facts(compress.compress_by_rules(rows, context, STYLE, budget=100), rows, context) == (8, 8)
  assert compress.kept_facts(sids(context, *rows), rows, context) == (5, 8)
  assert compress.kept_facts(sids(context, SHAMPOO, CONDITIONER, TONER), rows, context) == (4, 8)  # shampoo, toner in order
  assert compress.kept_facts([*context.text("a TONER too"), *sids(context, TONER)], rows, context) == (2, 8)
  assert compress.kept_facts([], rows, context) == (0, 8)
  assert compress.kept_facts([-5, -6], rows, context) == (0, 8)
  assert compress.kept_facts([], [], context) == (0, 0)
  # Bought again: one ID, one category, at its last place.
  assert compress.kept_facts(sids(context, TONER, SHAMPOO), [SHAMPOO, TONER, SHAMPOO], context) == (3, 5)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("a. b.", 0), ("a ... b…", 2), ("......", 1), (".. .", 0)])
def test_ellipses(text, count):
  assert compress.count_ellipses(text) == count
