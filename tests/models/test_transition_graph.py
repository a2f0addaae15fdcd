"""The graph finds what it was shown to follow, reads text where nothing followed, and as a ranker of slates knows the past alone."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate
from gr2_jax.models.transition_graph import TransitionGraph

N = 12
CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"item {n}") for n in range(N)))
VECTORS = np.eye(N, dtype=np.float32)


def make_log(*lines, start=0):
  """A user for each line of rows, with one event a second from `start`."""
  return [History(f"u{k}", tuple(f"i{n}" for n in line), tuple(range(start, start + len(line)))) for k, line in enumerate(lines)]


LOG = make_log((0, 1, 2), (5, 0, 1), (0, 3), (1, 4, 2), (7, 8))


@pytest.fixture
def graph():
  return TransitionGraph.fit(LOG, CATALOGUE, VECTORS)


def test_a_planted_next_item_is_found(graph):
  scores = graph.catalogue_scores(np.array([[0, -1], [5, 7]], np.int32))
  assert scores.shape == (2, N) and scores.dtype == np.float32
  scores[0, 0] = scores[1, [5, 7]] = -1
  assert scores[0].argsort()[::-1][:3].tolist() == [1, 3, 2] and scores[1].argmax() == 8


def test_scores_by_hand(graph):
  # Item 0 was taken by three; 1 came right after it twice, and so within five steps; 2 within five steps once.
  scores = graph.catalogue_scores(np.array([[5, 0]], np.int32))[0]
  assert scores[1] == pytest.approx((2 + 0.5 * 2) / np.sqrt(3) + 0.5 * (0 + 0.5 * 1), rel=1e-5)
  assert scores[2] == pytest.approx(0.5 / np.sqrt(3), rel=1e-5)
  assert scores[5] == pytest.approx(0.5 * 0.5, rel=1e-5), "its own text, a step back"


def test_text_ranks_what_never_followed_anything():
  vectors = VECTORS.copy()
  vectors[10] = vectors[9] + 0.5 * vectors[2]
  scores = TransitionGraph.fit(LOG, CATALOGUE, vectors).catalogue_scores(np.array([[9]], np.int32))[0]
  assert scores.argsort()[::-1][:2].tolist() == [9, 10]


def test_candidates_are_scored_as_the_catalogue_is(graph):
  past = np.array([[5, 0, -1], [7, -1, -1], [1, 4, 0]], np.int32)
  whole = graph.catalogue_scores(past)
  candidates = np.array([[1, 2, 5], [8, 0, -1], [2, 3, 4]])
  scores = graph.scores(past, candidates)
  assert scores[1, 2] == 0
  np.testing.assert_allclose(scores[candidates >= 0], np.take_along_axis(whole, candidates, axis=1)[candidates >= 0], rtol=1e-5)


def test_a_long_history_is_read_from_its_end_and_an_empty_one_says_nothing(graph):
  long = np.array([[3] * 30 + [5, 0]], np.int32)
  np.testing.assert_allclose(graph.catalogue_scores(long)[0, [1, 2]], graph.catalogue_scores(long[:, 12:])[0, [1, 2]])
  assert (graph.catalogue_scores(np.full((1, 3), -1, np.int32)) == 0).all()


def test_later_events_change_nothing_in_a_past_only_ranking(graph):
  slates = [Slate("a", ("i5", "i0"), ("i1", "i2", "i3"), (0, 1, 0), timestamp=10), Slate("b", ("i7",), ("i8", "i4"), (1, 0), timestamp=10)]
  base = graph.slate_scores(slates, CATALOGUE)
  later = make_log((0, 3), (0, 3), (0, 2), (7, 4), (7, 4), start=10)
  longer = TransitionGraph.fit([*LOG, *later], CATALOGUE, VECTORS)
  np.testing.assert_array_equal(longer.slate_scores(slates, CATALOGUE), base)
  assert base[0].argmax() == 0 and base[1, 0] > base[1, 1] and base[1, 2] == 0
  late = [dataclasses.replace(slate, timestamp=100) for slate in slates]
  assert longer.slate_scores(late, CATALOGUE)[0].argmax() == 2, "by then they count"


def test_items_and_vectors_of_another_catalogue_are_named(graph):
  with pytest.raises(DataError, match="i99"):
    TransitionGraph.fit([History("u", ("i0", "i99"))], CATALOGUE, VECTORS)
  with pytest.raises(DataError, match="vectors: 3 rows for 12 items"):
    TransitionGraph.fit(LOG, CATALOGUE, VECTORS[:3])
