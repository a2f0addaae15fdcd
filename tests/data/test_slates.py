"""Slates from scores, and cross-fitting."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, History, Item, check_slate
from gr2_jax.data.slates import cross_fit_examples, slates_from_candidates, slates_from_scores
from gr2_jax.data.splits import NextItem

CATALOGUE = Catalogue(tuple(Item(f"i{n}", f"item {n}") for n in range(8)))


def fixed_scores(values):
  return lambda rows: np.tile(np.asarray(values, np.float32), (len(rows), 1))


def test_top_items_in_score_order_kept_only_with_the_target():
  scores = fixed_scores([0, 7, 6, 5, 4, 3, 2, 1])
  examples = [
    NextItem("a", ("i1",), "i3", timestamp=9, segment="same_day"),  # i1 is masked: i2 i3 i4
    NextItem("b", ("i0", "i7"), "i4"),  # i1 i2 i3: the target is not among them
    NextItem("c", ("i2",), "i1"),
  ]
  result = slates_from_scores(scores, examples, CATALOGUE, size=3)
  assert [s.user for s in result.slates] == ["a", "c"]
  first = result.slates[0]
  assert first.candidates == ("i2", "i3", "i4") and first.labels == (0, 1, 0) and first.upstream_scores == (6.0, 5.0, 4.0)
  assert first.timestamp == 9 and first.segment == "same_day" and first.history == ("i1",)
  assert result.asked == 3 and result.recall == pytest.approx(2 / 3)
  for slate in result.slates:
    check_slate(slate, CATALOGUE)


def test_history_items_may_come_back_when_not_masked():
  result = slates_from_scores(fixed_scores(range(8)), [NextItem("a", ("i7",), "i6")], CATALOGUE, size=2, mask_history=False)
  assert result.slates[0].candidates == ("i7", "i6")


def test_items_that_were_not_retrieved_are_no_candidates():
  # Two beams reach i5 and i7: a slate of three has two candidates, and an unreached target is not there by the order of rows.
  scores = fixed_scores([-np.inf] * 5 + [2, -np.inf, 1])
  examples = [NextItem("a", ("i0",), "i7"), NextItem("b", ("i0",), "i1"), NextItem("c", ("i7",), "i5")]  # of c only i5 is left
  result = slates_from_scores(scores, examples, CATALOGUE, size=3)
  assert [(s.user, s.candidates, s.upstream_scores) for s in result.slates] == [("a", ("i5", "i7"), (2.0, 1.0))]
  assert result.asked == 3


def test_equal_scores_go_by_row():
  result = slates_from_scores(fixed_scores([1] * 8), [NextItem("a", ("i0",), "i1")], CATALOGUE, size=8 - 1)
  assert result.slates[0].candidates == tuple(f"i{n}" for n in range(1, 8))


def test_the_ranker_reads_padded_histories_of_one_shape():
  shapes = []

  def scores(rows):
    shapes.append(rows.shape)
    assert rows[0].tolist() == [1, -1] and rows[1].tolist() == [0, 2] and (rows[2:] == -1).all()
    return np.zeros((len(rows), 8))

  slates_from_scores(scores, [NextItem("a", ("i1",), "i3"), NextItem("b", ("i0", "i2"), "i3")], CATALOGUE, size=2)
  assert len(set(shapes)) == 1


def test_sizes_and_items_that_cannot_work_are_refused():
  with pytest.raises(DataError, match=r"^size: "):
    slates_from_scores(fixed_scores(range(8)), [NextItem("a", ("i1",), "i3")], CATALOGUE, size=8)
  with pytest.raises(DataError, match="unknown item 'nope'"):
    slates_from_candidates(np.zeros((1, 2), int), np.zeros((1, 2)), [NextItem("a", ("i1",), "nope")], CATALOGUE)
  assert slates_from_scores(fixed_scores(range(8)), [], CATALOGUE, size=2).recall == 0


def test_cross_fitting_holds_every_user_out_once_and_never_fits_on_a_target():
  histories = [History(f"u{n}", tuple(f"i{(n + k) % 8}" for k in range(2 + n % 5)), tuple(range(2 + n % 5))) for n in range(11)]
  held_out = []
  for fitted, requests in cross_fit_examples(histories, 3, seed=0, max_history=2, per_user=2):
    assert not {h.user for h in fitted} & {r.user for r in requests}
    held_out += requests
  by_user = {h.user: [r for r in held_out if r.user == h.user] for h in histories}
  for history in histories:
    # Positions 2.. of a history of n items, the latest two of them.
    positions = range(max(2, len(history.items) - 2), len(history.items))
    assert [(r.history, r.target, r.timestamp) for r in by_user[history.user]] == [
      (history.items[max(0, p - 2) : p], history.items[p], history.timestamps[p]) for p in positions
    ]


def test_more_folds_than_users_is_refused():
  with pytest.raises(DataError, match="folds"):
    next(cross_fit_examples([History("u", ("i1", "i2", "i3"))], 2, seed=0, max_history=5))


def test_a_ranker_whose_scores_are_nan_is_named_and_makes_no_slates():
  with pytest.raises(DataError, match="the click model"):
    slates_from_scores(fixed_scores([np.nan] * 8), [NextItem("a", ("i1",), "i3")], CATALOGUE, size=2, ranker="the click model")
