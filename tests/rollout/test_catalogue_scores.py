"""The mid-trained model's scores of given candidates are those that it finds over the whole catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.data.slates import pad_histories, pad_rows
from gr2_jax.language.prompts import PromptContext
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.packed_items import ItemTable, PackedItems
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.catalogue_scores import (
  make_beam_scores,
  make_candidate_scores,
  make_dense_scores,
  make_packed_beam_scores,
  make_packed_candidate_scores,
  reorder_beams,
)

ITEMS = tuple(Item(f"i{n}", f"rose toner {n}") for n in range(20))
SLATES = [
  Slate("u", ("i3", "i4", "i5", "i6"), ("i0", "i19", "i7", "i8"), (1, 0, 0, 0)),
  Slate("v", ("i1",), ("i5", "i2"), (1, 0)),
  Slate("w", ("i9", "i3"), ("i1", "i0", "i12"), (1, 0, 0)),
]
HISTORIES = np.array([[3, 4, 5, 6, -1], [1, -1, -1, -1, -1], [9, 3, -1, -1, -1], [-1] * 5], np.int32)  # of these slates, and none


@pytest.fixture(scope="module")
def model():
  """(decoder, parameters, context) of 20 items on 3 levels, two of which share their codes."""
  texts = [item.title for item in ITEMS] * 30
  vocabulary = Vocabulary.train(texts, text_pieces=400, num_levels=3, codebook_size=4, num_candidates=4)
  codes = np.stack(np.unravel_index(np.random.default_rng(0).permutation(64)[:20], (4, 4, 4)), axis=1)
  codes[19] = codes[0]
  decoder = Decoder(preset("test", vocabulary.size))
  params = jax.tree.map(lambda x: 3 * x, init_params(decoder, jax.random.key(0)))
  return decoder, params, PromptContext(Catalogue(ITEMS), codes, vocabulary)


def test_candidates_are_scored_as_beams_score_the_catalogue(model):
  catalogue = model[2].catalogue
  scores = make_candidate_scores(*model, max_history=3, batch_size=2)(SLATES)
  assert scores.shape == (3, 4) and np.isnan(scores[1, 2:]).all() and np.isnan(scores[2, 3])
  histories = pad_rows([catalogue.to_rows(slate.history) for slate in SLATES]).astype(np.int32)
  table = make_beam_scores(*model, beams=20, max_history=3)(histories)
  for line, slate, of_slate in zip(table, SLATES, scores, strict=True):
    np.testing.assert_allclose(of_slate[: len(slate.candidates)], line[catalogue.to_rows(slate.candidates)], atol=1e-5)
  assert scores[0, 0] == scores[0, 1]  # they share a semantic ID


def test_probabilities_of_the_catalogue_sum_to_one(model):
  names = [item.id for item in ITEMS[:19]]
  whole = Slate("u", ("i3", "i4"), tuple(names), (1, *[0] * 18))
  scores = make_candidate_scores(*model, max_history=3, batch_size=1)([whole])
  assert np.exp(scores).sum() == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def packed():
  """(model of packed items, parameters, table) of the same items."""
  random = np.random.default_rng(1)
  table = ItemTable(jnp.asarray(random.integers(4, size=(20, 2)), jnp.int32), random.normal(size=(20, 5)).astype(np.float32))
  model = PackedItems(preset("test", 1), num_items=20, levels=2, codebook_size=4, text_dim=5, dropout=0.5)
  return model, jax.tree.map(lambda x: 3 * x, init_params(model, jax.random.key(0))), table


def test_histories_are_padded_behind_their_last_rows():
  padded = pad_histories([[3, 1, 4, 1, 5], np.array([9]), []], 3)
  assert padded.tolist() == [[4, 1, 5], [9, -1, -1], [-1, -1, -1]] and padded.dtype == np.int32


def test_the_dense_head_s_probabilities_sum_to_one_and_there_are_none_without_a_history(packed):
  scores = make_dense_scores(*packed, max_history=3)(HISTORIES)
  assert scores.shape == (4, 20) and np.isnan(scores[3]).all()
  np.testing.assert_allclose(np.exp(scores[:3]).sum(axis=1), 1, rtol=1e-4)
  model, params, table = packed
  states, vectors = jax.jit(lambda rows: model.apply({"params": params}, rows, table))(pad_histories([[4, 5, 6], [1], [9, 3], []], 3))
  for row, last in enumerate((2, 0, 1)):
    logits = np.asarray(vectors) @ np.asarray(states)[row, last]
    np.testing.assert_allclose(scores[row], logits - np.log(np.exp(logits).sum()), atol=1e-4)


def test_the_dense_head_reads_the_last_of_a_history_alone(packed):
  scores = make_dense_scores(*packed, max_history=3)
  base, changed = scores(HISTORIES), HISTORIES.copy()
  changed[0, 0] = 11
  np.testing.assert_array_equal(scores(changed), base)
  changed[0, 1] = 11
  assert np.abs(scores(changed) - base)[0].max() > 1e-3
  wider = np.pad(HISTORIES, ((0, 0), (0, 2)), constant_values=-1)
  np.testing.assert_array_equal(scores(wider), base)


def test_candidates_are_scored_as_the_dense_head_does_within_their_slate(packed):
  catalogue = Catalogue(ITEMS)
  past = pad_histories([*(catalogue.to_rows(slate.history) for slate in SLATES), []], 3)
  candidates = np.full((4, 6), -1, np.int32)
  candidates[:3, :4] = pad_rows([catalogue.to_rows(slate.candidates) for slate in SLATES])
  candidates[3, :2] = 1, 2
  scores = np.asarray(make_packed_candidate_scores(*packed)(past, candidates))
  of_all = make_dense_scores(*packed, max_history=3)(HISTORIES)
  for row, slate in enumerate(SLATES):
    inside = of_all[row, catalogue.to_rows(slate.candidates)]
    np.testing.assert_allclose(scores[row, : len(inside)], inside - np.log(np.exp(inside).sum()), atol=1e-4)
    assert (scores[row, len(inside) :] == 0).all()
  np.testing.assert_allclose(scores[3], np.log([0.5, 0.5, 1, 1, 1, 1]), atol=1e-6)  # nothing is known of who has no history


def score_by_codes(packed, histories):
  """Log-probability of every item `[B, N]` by all its codes, each among those that the catalogue has after the ones before it."""
  model, params, table = packed
  codes, leaves = np.asarray(table.codes), np.array(list(np.ndindex(4, 4)), np.int32)
  states, _ = model.apply({"params": params}, histories, table)
  found = np.zeros((len(histories), 20))
  for row, last in enumerate((histories >= 0).sum(axis=1) - 1):
    of = model.apply({"params": params}, np.tile(np.asarray(states)[row, last], (16, 1)), leaves, method="code_log_probs")
    probability = {tuple(leaf): np.exp(line) for leaf, line in zip(leaves.tolist(), np.asarray(of, np.float64), strict=True)}
    for item, (first, second) in enumerate(codes.tolist()):
      firsts = sum(probability[code, 0][0] for code in set(codes[:, 0].tolist()))
      seconds = sum(probability[first, code][1] for code in set(codes[codes[:, 0] == first, 1].tolist()))
      found[row, item] = np.log(probability[first, second][0] / firsts) + np.log(probability[first, second][1] / seconds)
  return found


def test_packed_beams_as_wide_as_the_catalogue_score_it_as_all_codes_do(packed):
  past = pad_histories([[4, 5, 6], [1], [9, 3]], 3)
  whole = score_by_codes(packed, past)
  scores = make_packed_beam_scores(*packed, beams=20, max_history=3)(HISTORIES)
  np.testing.assert_allclose(scores[:3], whole, atol=1e-4)
  assert np.isnan(scores[3]).all() and whole.std(axis=1).min() > 0.1
  distinct = len(np.unique(packed[2].codes, axis=0))
  assert distinct < 20, "some items share a semantic ID, and its score"
  narrow = make_packed_beam_scores(*packed, beams=2, max_history=3)(HISTORIES)[:3]
  found = narrow > -np.inf
  assert [len(np.unique(line[of])) for line, of in zip(whole, found, strict=True)] == [2] * 3
  np.testing.assert_allclose(narrow[found], whole[found], atol=1e-4)


def test_beams_stand_in_the_order_of_the_dense_head_and_none_joins_them():
  beams = np.array([[-1.0, -2.0, -np.inf, -4.0]])
  dense = np.array([[-3.0, -2.5, -0.1, -1.0]])
  assert reorder_beams(beams, dense).tolist() == [[-3.0, -2.5, -np.inf, -1.0]]
  assert reorder_beams(beams, dense, 0.5).tolist() == [[-3.5, -3.5, -np.inf, -3.0]]
  assert np.isnan(reorder_beams(np.full((1, 2), np.nan), np.zeros((1, 2)))).all(), "a model that diverged is not hidden"
