"""The mid-trained model's scores of given candidates are those that beams over the whole catalogue find."""

import jax
import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.data.slates import pad_rows
from gr2_jax.language.prompts import PromptContext
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.config import preset
from gr2_jax.models.packed_items import ItemTable, PackedItems
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.catalogue_scores import (
  make_beam_scores,
  make_candidate_scores,
  make_packed_candidate_scores,
  make_packed_slate_scores,
  pad_histories,
)

ITEMS = tuple(Item(f"i{n}", f"rose toner {n}") for n in range(20))
SLATES = [
  Slate("u", ("i3", "i4", "i5", "i6"), ("i0", "i19", "i7", "i8"), (1, 0, 0, 0)),
  Slate("v", ("i1",), ("i5", "i2"), (1, 0)),
  Slate("w", ("i9", "i3"), ("i1", "i0", "i12"), (1, 0, 0)),
]


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


def test_served_slates_are_scored_as_those_of_tables():
  random, catalogue = np.random.default_rng(0), Catalogue(ITEMS)
  model = PackedItems(preset("test", 1), num_items=20, levels=2, codebook_size=8, text_dim=5)
  table = ItemTable(random.integers(8, size=(20, 2)).astype(np.int32), random.normal(size=(20, 5)).astype(np.float32))
  params = jax.tree.map(lambda x: 3 * x, init_params(model, jax.random.key(0)))
  expected = make_packed_candidate_scores(model, params, table, catalogue, max_history=3, batch_size=2)(SLATES)
  past = pad_histories([*(catalogue.to_rows(slate.history) for slate in SLATES), []], 3)
  candidates = np.full((4, 6), -1, np.int32)
  candidates[:3, :4] = pad_rows([catalogue.to_rows(slate.candidates) for slate in SLATES])
  candidates[3, :2] = 1, 2
  scores = np.asarray(make_packed_slate_scores(model, params, table)(past, candidates))
  np.testing.assert_allclose(scores[:3, :4], np.nan_to_num(expected), atol=1e-5)
  np.testing.assert_allclose(scores[3], np.log([0.5, 0.5, 1, 1, 1, 1]), atol=1e-6)  # nothing is known of who has no history
