"""What a scored policy learns of a run's slates, and that its scores do not depend on how many are scored at a time."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import init_params
from gr2_jax.runs import scored
from gr2_jax.runs.fact_tables import write_fact_tables
from gr2_jax.runs.run import Run
from gr2_jax.runs.scored import TARGETS, AnswerOptions, ItemTexts, ScoredSlates, make_answer, mix_targets, open_scorer

LABELS = np.array([[0, 1, 0, -1], [1, 0, 2, 0], [0, 0, 0, 0]], np.int32)
REAL = LABELS >= 0
TEACHER = np.array([[0.5, 1.0, -2.0, np.nan], [0.3, 2.0, 0.1, -1.0], [1.0, 0.0, 0.0, 0.0]])
FACTS = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"Rose {n}") for n in range(6)))
NAMED = [("i0", "i1", "i2"), ("i3", "i4", "i5", "i0"), ("i1", "i2", "i3", "i4")]
OF_RUN = [Slate(f"u{n}", ("i5", "i4", "i3")[:n], names, (0,) * len(names)) for n, names in enumerate(NAMED)]
NO_TEXTS = ItemTexts(CATALOGUE, np.zeros((7, 0), np.float32), 0)
SLATES = ScoredSlates(FACTS, LABELS, np.float32([1, 2, 3]), *NO_TEXTS.rows(OF_RUN), NO_TEXTS)
CODES = FactCodes(("age", "lm_score"), np.float32([[-2, 0, 2], [-1, 0, 1]]))


VOCABULARY = Vocabulary.train(["a rose", "a balm"] * 8, num_levels=2, codebook_size=4, num_candidates=4, text_pieces=512)


@pytest.fixture
def run(tmp_path):
  sections = {
    "model": {"preset": "test", "init": "random", "dtype": "", "remat": None},
    "answer": {"dropout": 0.25, "text_dropout": 0.5, "texts": False, "past": 2, "names": False},
    "decoding": {"max_new_tokens": 5, "constraint": "none"},
  }
  run = Run(pathlib.Path(tmp_path), ConfigDict(sections))
  run.path("tokenize").mkdir(parents=True)
  VOCABULARY.save(run.path("tokenize", "vocabulary"))
  write_fact_tables(run, CODES.names, {"train": FACTS}, CODES, TEACHER)
  return run


def soft(row):
  weights = np.exp(TEACHER[row][REAL[row]])
  return np.pad(weights / weights.sum(), (0, 4 - len(weights)))


def test_targets_by_hand(run):
  by_label = np.array([[0, 1, 0, 0], [1 / 3, 0, 2 / 3, 0], [0, 0, 0, 0]])
  by_tree = np.stack([soft(row) for row in range(3)])
  np.testing.assert_allclose(mix_targets(run, SLATES, "label"), by_label, atol=1e-6)
  np.testing.assert_allclose(mix_targets(run, SLATES, "tree"), by_tree, atol=1e-6)
  np.testing.assert_allclose(mix_targets(run, SLATES, "mixture"), (by_label + by_tree) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_a_labelled_slate_sum_to_one_and_the_padding_has_none(run, kind):
  targets = mix_targets(run, SLATES, kind)
  assert targets.dtype == np.float32 and np.isfinite(targets).all() and (targets[~REAL] == 0).all()
  np.testing.assert_allclose(targets[:2].sum(axis=1), 1, rtol=1e-6)


def test_labels_alone_need_no_tree(run):
  run.path("evidence", "teacher.npy").unlink()
  assert mix_targets(run, SLATES, "label")[0].tolist() == [0, 1, 0, 0]
  with pytest.raises(FileNotFoundError):
    mix_targets(run, SLATES, "tree")


def test_the_run_s_scorer_is_that_of_its_codes(run):
  model = open_scorer(run)
  assert (model.shape, model.prior, model.content_dim, model.dropout) == ((2, 2), 1, 0, 0)
  learning = open_scorer(run, learns=True)
  assert (learning.dropout, learning.content_dropout) == (0.25, 0.5)


@pytest.mark.parametrize("reasoned", [False, True])
def test_answers_are_the_same_however_many_are_asked_at_a_time(run, monkeypatch, reasoned):
  params = jax.tree.map(lambda x: 5 * x, init_params(open_scorer(run), jax.random.key(0)))
  together = make_answer(run, reasoned=reasoned)(params, SLATES)
  assert together.scores.shape == (3, 4) and together.scores[REAL].std() > 1e-2
  assert all(bool(tokens) == reasoned and len(tokens) <= 5 for tokens in together.thoughts) and len(together.thoughts) == 3
  monkeypatch.setattr(scored, "SLATES_AT_ONCE", 2)
  in_parts = make_answer(run, reasoned=reasoned)(params, SLATES)
  np.testing.assert_allclose(in_parts.scores[REAL], together.scores[REAL], atol=1e-4)
  assert in_parts.thoughts == together.thoughts


def test_some_slates_keep_what_is_theirs():
  some = SLATES.take(np.array([2, 0]))
  assert len(some) == 2 and some.weights.tolist() == [3, 1] and some.labels.tolist() == LABELS[[2, 0]].tolist()
  packed = SLATES.pack(np.array([0, 1]))
  np.testing.assert_array_equal(packed.facts, FACTS[:2])
  np.testing.assert_array_equal(packed.real, REAL[:2])
  assert packed.content.shape == (2, 4, 0) and packed.past_content.shape == (2, 0, 0) and packed.past.shape == (2, 0)


def test_texts_stand_where_their_items_are_the_latest_last(run):
  vectors = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
  np.save(run.path("tokenize", "vectors.npy"), vectors)
  units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  run.config.answer.texts = True
  items = ItemTexts.load(run, CATALOGUE)
  packed = items.pack(FACTS, *items.rows(OF_RUN))
  assert packed.past.tolist() == [[False, False], [False, True], [True, True]]
  np.testing.assert_allclose(packed.past_content[1:, 1], units[[5, 4]], rtol=1e-5)
  np.testing.assert_allclose(packed.past_content[2, 0], units[5], rtol=1e-5)
  np.testing.assert_allclose(packed.content[0], [*units[:3], np.zeros(5)], rtol=1e-5)
  assert packed.real.tolist() == REAL.tolist() and open_scorer(run).content_dim == 5


def test_texts_are_for_scored_answers():
  with pytest.raises(ValueError, match="texts: written answers"):
    AnswerOptions(texts=True)
