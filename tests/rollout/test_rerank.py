"""Ranking slates in batches: answers land at their slates, the fillers of the last batch nowhere, and decoding runs ahead of reading."""

import jax
import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rollout.generate import Rollout
from gr2_jax.rollout.rerank import rank_slates


@pytest.mark.parametrize("answer", ["compact", "json"])
def test_batches(answer):
  style = PromptStyle(answer=answer)
  vocabulary = Vocabulary.train(["toner best"] * 30, text_pieces=400, num_levels=2, codebook_size=4, num_candidates=4)
  catalogue = Catalogue(tuple(Item(f"i{n}", f"Toner {n}", "Velora", ("Care",), None, 1.0) for n in range(3)))
  context = PromptContext(catalogue, np.zeros((3, 2), int), vocabulary)
  sizes = (3, 2, 3, 3, 2)
  slates = [Slate("u", ("i0",), ("i0", "i1", "i2")[:size], (1, 0, 0)[:size]) for size in sizes]
  random = np.random.default_rng(0)
  shown, rankings = ([random.permutation(size) for size in sizes] for _ in range(2))
  completions = [render_answer(r, order, None, vocabulary, style).tokens for r, order in zip(rankings, shown, strict=True)]
  completions[3] = completions[3][:-1]  # no eos
  batches, events = [], []

  def generate(params, tokens, mask, key, sampling, *, row_ids, references):
    batches.append(row_ids.tolist())
    events.append("decode")
    out = np.full((len(row_ids), 1, 80), vocabulary.pad_id, np.int32)
    for place, row in enumerate(row_ids):
      out[place, 0, : len(completions[row])] = completions[row]
    lengths = np.array([[[len(completions[row])]] for row in row_ids])
    log_probs = np.where(row_ids[:, None, None] == 2, np.nan, np.zeros(out.shape))  # of logits that were not finite
    return Rollout(tokens, mask, out, np.arange(80) < lengths, log_probs, None, None, None)

  ranked = rank_slates(
    generate, None, slates, shown, context, style, batch_size=2, key=jax.random.key(0), on_progress=lambda done: events.append(done)
  )
  assert batches == [[0, 1], [2, 3], [4, 0]] and events == ["decode", "decode", 2, "decode", 4, 5]
  assert ranked.errors == [None, None, "not_finite", "overlong", None] and ranked.completions == completions
  expected = [np.pad(r, (0, 3 - len(r)), constant_values=-1) for r in rankings]
  expected[2] = expected[3] = np.full(3, -1)
  np.testing.assert_array_equal(ranked.rankings, expected)
  np.testing.assert_array_equal(ranked.completion_tokens, [len(tokens) for tokens in completions])
  np.testing.assert_array_equal(ranked.reasoning_tokens, 0)
