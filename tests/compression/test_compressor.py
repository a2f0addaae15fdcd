"""Compressed histories in requests: what stands in the prompt, what is left out and said, remembered histories, and shorter shapes."""

import bisect

import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.compression import compressor as compressed
from gr2_jax.compression.cache import history_key
from gr2_jax.compression.compressor import check_compressor, compressors_of
from gr2_jax.compression.rules import compress_by_rules
from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.prompts import PromptContext, render_prompt
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.request import Request

# As texts of items would be: a full history is far longer than its codes.
VERBOSE = {"history_fields": ("title", "brand", "categories"), "item_fields": (), "max_history": 8, "max_prompt_tokens": 240}
HISTORY = ("i1", "i5", "i5", "i7", "i1", "i9")  # i5 and i1 were bought twice
CANDIDATES = ("i2", "i3", "i4")


class NewItems:
  """Gives every new item the codes 0, 0."""

  def __init__(self, context):
    self.context = context

  def extend(self, items):
    base = self.context
    codes = np.concatenate([base.codes, np.zeros((len(items), 2), int)])
    return PromptContext(Catalogue(base.catalogue.items + tuple(items)), codes, base.vocabulary), {}


def make(make_reranker, variant, style=VERBOSE, budget=24, new_items=False, **options):
  settings = {"variant": variant, "budget": budget} | {name: options.pop(name) for name in ("per_item", "texts") if name in options}
  cold_start = NewItems(make_reranker().policy.context) if new_items else None
  return make_reranker(style, cold_start, settings, **{"modes": ("score",), "batch_size": 1} | options)


def in_prompt(reranker, history, candidates=CANDIDATES):
  """(the tokens that stand as the history, the ranking's fields)."""
  prepared = reranker.prepare(Request(history, candidates))
  tokens, special = prepared.rows[0].tokens, reranker.policy.context.vocabulary.special
  return tokens[tokens.index(special("history")) + 1 : tokens.index(special("assistant"))], prepared.fields


@pytest.mark.parametrize("variant", ["sids", "rules"])
@pytest.mark.parametrize("budget", [24, 4])
def test_rules_stand_in_the_prompt_and_what_they_leave_out_is_counted(make_reranker, variant, budget):
  reranker = make(make_reranker, variant, budget=budget)
  context = reranker.policy.context
  tokens, fields = in_prompt(reranker, HISTORY)
  rows = context.catalogue.to_rows(HISTORY)
  assert tokens == compress_by_rules(rows, context, reranker.policy.style, budget=budget, categories=variant == "rules")
  assert fields["history_tokens"] == len(tokens) <= budget and fields["compressor"] == variant
  here = {tuple(context.vocabulary.sid_tokens(context.codes[row])) for row in rows}
  quoted = [token for token in tokens if token >= context.vocabulary.sid_start]
  stand = here & set(zip(quoted[::2], quoted[1::2], strict=True))
  assert fields["dropped_history"] == sum(tuple(context.vocabulary.sid_tokens(context.codes[row])) not in stand for row in rows)
  assert fields["dropped_history"] == (0 if budget == 24 else {"sids": 3, "rules": 5}[variant])  # i5 and i7, and i1 too
  counts = {"history_tokens": 0, "dropped_history": 0, "unknown_history": 0}
  assert in_prompt(reranker, ()) == ([], counts | {"compressor": variant, "assigned": (), "guessed": {}})


def test_soft_tokens_of_the_codes_rank_as_the_codes_do(make_reranker):
  codes_alone = {"history_fields": (), "max_history": 8}
  full = make_reranker(codes_alone, modes=("score",), batch_size=1)
  soft = make(make_reranker, "soft_tokens", codes_alone, per_item=2)
  for history in (HISTORY, HISTORY[:2]):
    expected, found = (reranker.rank(history, CANDIDATES) for reranker in (full, soft))
    assert found.order == expected.order and found.history_tokens == 2 * len(history) and found.dropped_history == 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_soft_tokens_leave_out_the_oldest_items_and_new_ones(make_reranker):
  reranker = make(make_reranker, "soft_tokens", budget=4, new_items=True)
  tokens, fields = in_prompt(reranker, (*HISTORY[:5], Item("new", "rose toner"), "i9"))
  assert tokens == [-1 - row for row in (5, 7, 1, 9)]
  assert (fields["dropped_history"], fields["assigned"]) == (3, ("new",))
  assert in_prompt(reranker, (Item("new", "rose toner"),))[0] == []


def test_new_items_stand_in_rules_by_their_codes(make_reranker):
  reranker = make(make_reranker, "rules", new_items=True)
  tokens, fields = in_prompt(reranker, ("i1", Item("new", "rose toner", None, ("Care", "rose"))))
  vocabulary = reranker.policy.context.vocabulary
  assert tokens[-2 - len(vocabulary.encode("rose")) :][:2] == vocabulary.sid_tokens([0, 0]) and fields["dropped_history"] == 0


def test_the_rewriters_text_is_read_where_there_is_one_and_else_the_rules_are_named(make_reranker):
  text = make_reranker().policy.context.vocabulary.encode("rose toner")
  texts = {history_key(HISTORY): text, history_key(HISTORY[:3]): text * 40}
  reranker, rules = make(make_reranker, "rewriter", texts=texts), make(make_reranker, "rules")
  tokens, fields = in_prompt(reranker, HISTORY)
  assert tokens == text and fields["compressor"] == "rewriter" and fields["dropped_history"] == 0
  for unknown in (HISTORY[1:], HISTORY[:3]):  # the second one's text is longer than the budget
    assert in_prompt(reranker, unknown) == in_prompt(rules, unknown)
  assert in_prompt(reranker, ("i0",) * 3 + HISTORY)[1]["compressor"] == "rules"


@pytest.mark.parametrize("variant", ["sids", "rules", "soft_tokens"])
def test_where_the_candidates_leave_less_room_than_the_budget_less_is_kept(make_reranker, variant):
  slate = Slate("", (), CANDIDATES, (0,) * 3)
  plain = make_reranker(VERBOSE)
  bare = len(render_prompt(slate, range(3), plain.policy.context, plain.policy.style, []).tokens)
  kept = []
  for room in (0, 1, 3, 8):
    reranker = make(make_reranker, variant, VERBOSE | {"max_prompt_tokens": bare + room})
    tokens, fields = in_prompt(reranker, HISTORY)
    kept.append(fields["dropped_history"])
    assert len(tokens) <= room and (room < 8 or tokens)
  assert kept[0] == len(HISTORY) and kept == sorted(kept, reverse=True)


def test_a_history_is_compressed_once_and_the_least_recently_used_is_forgotten(make_reranker, monkeypatch):
  monkeypatch.setattr(compressed, "_HISTORIES", 2)
  reranker = make(make_reranker, "rules", new_items=True)
  first = in_prompt(reranker, HISTORY)
  assert in_prompt(reranker, HISTORY, ("i11", "i12")) == first and reranker.compressor.reuse == (1, 1)
  in_prompt(reranker, ("i1", Item("new", "rose")))
  assert reranker.compressor.reuse == (1, 1)  # the codes of new items depend on their request
  for history in (("i1",), HISTORY, ("i2",), HISTORY, ("i1",)):
    in_prompt(reranker, history)
  assert reranker.compressor.reuse == (3, 4)


def test_shorter_histories_are_padded_to_shorter_lengths(make_reranker):
  history = tuple(f"i{n}" for n in range(20))
  full = make_reranker(VERBOSE, prompt_lengths=(), modes=("score",), batch_size=1)
  short = make(make_reranker, "sids", prompt_lengths=())

  def padded(reranker, candidates):
    lengths = reranker.engine.prompt_lengths
    return lengths[bisect.bisect_left(lengths, len(reranker.prepare(Request(history, candidates)).rows[0].tokens))]

  for candidates in (CANDIDATES, tuple(f"i{n}" for n in range(30, 36))):
    assert padded(short, candidates) < padded(full, candidates)
  assert short.engine.prompt_lengths[-1] == full.engine.prompt_lengths[-1]

  reused = make(make_reranker, "sids", prompt_lengths=(), prefix_cache=1)
  row = reused.prepare(Request(history, CANDIDATES)).rows[0]
  assert reused.engine.rest_lengths == (32,) and 16 < len(row.tokens) - row.shared <= 32
  expected, found = (reranker.rank(history, CANDIDATES) for reranker in (short, reused))
  assert found.order == expected.order and not found.fallback
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_a_run_has_the_variants_of_its_finished_stage(tmp_path):
  run = Run(tmp_path, ConfigDict({"compress": {"variants": ("sids", "rules")}}))
  assert compressors_of(run) == ()
  with pytest.raises(RunError, match=r"compressor: .*'rules'.*config\.compress\.variants"):
    check_compressor(run, "rules")
  run.path("compress").mkdir()
  run.path("compress", "done.json").write_text("{}")
  assert compressors_of(run) == ("sids", "rules")
  check_compressor(run, "rules")
  with pytest.raises(RunError, match=r"compressor: .*'soft_tokens'.*sids, rules"):
    check_compressor(run, "soft_tokens")
