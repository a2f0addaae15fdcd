"""Transition and item counts: hand-derived, and against a plain loop on random histories."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate
from gr2_jax.evidence.counts import ALWAYS, NEVER, Interactions, ItemCounts, TransitionCounts, index_names, next_counts

CATALOGUE = Catalogue(tuple(Item(name, name) for name in "abcd"))
A, B, C, D = range(4)
# Steps of length one: a→b at 20, b→a at 30, a→b at 40; a→b at 20, b→c at 25; c→d whenever.
HISTORIES = (
  History("u", ("a", "b", "a", "b"), (10, 20, 30, 40)),
  History("v", ("a", "b", "c"), (5, 20, 25)),
  History("w", ("c", "d")),
)


def test_counts_by_hand():
  counts = TransitionCounts.fit(HISTORIES, CATALOGUE)
  assert counts.count([A, B, B, C, D], [B, A, C, D, C]).tolist() == [3, 1, 1, 1, 0]
  assert counts.count(B, A) == 1  # b→a of user u; the end of u and the start of v are no step
  # Strictly before: at 20 neither event of time 20 is past, at 21 both are; the untimed c→d is always past.
  assert counts.count(A, B, [20, 21, 40, 41]).tolist() == [0, 2, 2, 3]
  assert counts.count(C, D, -(10**9)) == 1


def test_all_three_arguments_broadcast():
  counts = TransitionCounts.fit(HISTORIES, CATALOGUE)
  sources, targets, before = np.array([[A], [B]]), np.array([[B, C, -1]]), np.array([[41], [26]])
  assert counts.count(sources, targets, before).tolist() == [[3, 0, 0], [0, 1, 0]]
  assert counts.count(sources, targets).shape == (2, 3)
  assert counts.count(np.zeros((0, 3), int), np.zeros((0, 3), int), np.zeros((0, 1))).shape == (0, 3)
  assert counts.count(A, B, np.zeros((2, 1, 1), int)).shape == (2, 1, 1)


def test_window_pairs_every_later_item_in_reach():
  # u with window 2: a→b 20, a→a 30, b→a 30, b→b 40, a→b 40.
  counts = TransitionCounts.fit(HISTORIES[:1], CATALOGUE, window=2)
  assert counts.count([A, A, B, B], [B, A, A, B]).tolist() == [2, 1, 1, 1]
  assert counts.count(A, A, [30, 31]).tolist() == [0, 1]  # the time of the later item
  assert TransitionCounts.fit(HISTORIES, CATALOGUE, window=99).count(A, C) == 1  # v: two steps on


def test_undirected_counts_both_ways_and_repeats_once():
  counts = TransitionCounts.fit((*HISTORIES, History("x", ("d", "d"), (1, 2))), CATALOGUE, directed=False)
  assert counts.count([A, B, C, B], [B, A, B, C]).tolist() == [4, 4, 1, 1]
  assert counts.count(D, D) == 1


def test_groups_count_as_one_item_and_group_minus_one_as_none():
  groups = np.array([0, 1, 0, -1])  # a and c are one group, d is in none
  counts = TransitionCounts.fit(HISTORIES, CATALOGUE, groups=groups)
  # a->b three times; b->a at 30 and b->c at 25; c->d is left out.
  assert counts.num_items == 2 and counts.count([0, 1, 0, 1], [1, 0, 0, 1]).tolist() == [3, 2, 0, 0]
  assert counts.count(1, 0, [25, 26, 31]).tolist() == [0, 1, 2]
  assert counts.count([-1, 0], [0, -1]).tolist() == [0, 0]


def test_names_are_numbered_in_sorted_order():
  names, index = index_names(["y", None, "", "x", "y"])
  assert names == ("", "x", "y") and index.tolist() == [2, -1, 0, 1, 2]
  assert index_names([])[1].shape == (0,)


def test_next_counts_of_a_slate_see_only_the_past():
  counts = TransitionCounts.fit(HISTORIES, CATALOGUE)
  at = {when: next_counts(Slate("r", ("c", "b"), ("a", "c", "d"), (1, 0, 0), timestamp=when), CATALOGUE, counts) for when in (25, 26, None)}
  assert {when: found.tolist() for when, found in at.items()} == {25: [0, 0, 0], 26: [0, 1, 0], None: [1, 1, 0]}
  larger = Catalogue((*CATALOGUE.items, Item("new", "")))  # it came after the counts were fitted
  assert next_counts(Slate("r", ("b",), ("new", "a"), (1, 0)), larger, counts).tolist() == [0, 1]
  assert next_counts(Slate("r", ("new",), ("b", "a"), (1, 0)), larger, counts).tolist() == [0, 0]
  assert next_counts(Slate("r", (), ("b", "a"), (1, 0)), CATALOGUE, counts).tolist() == [0, 0]
  with pytest.raises(DataError, match="unknown item 'z'"):
    next_counts(Slate("r", ("z",), ("b", "a"), (1, 0)), CATALOGUE, counts)


def test_neighbours_are_sorted_limited_and_past_only():
  histories = (*HISTORIES, History("x", ("b", "d", "b", "d"), (50, 50, 60, 70)))
  counts = TransitionCounts.fit(histories, CATALOGUE)
  assert counts.neighbours(B) == [(D, 2), (A, 1), (C, 1)]  # a before c: ties by row
  assert counts.neighbours(B, top=1) == [(D, 2)]
  assert counts.neighbours(B, before=30) == [(C, 1)]
  assert counts.neighbours(B, before=0) == []
  assert counts.neighbours(D) == [(B, 1)]


def test_item_counts_by_hand():
  counts = ItemCounts.fit(HISTORIES, CATALOGUE)
  assert counts.count([A, B, C, D, -1]).tolist() == [3, 3, 2, 1, 0]
  assert counts.count(A, [5, 6, 10, 11, 31]).tolist() == [0, 1, 1, 2, 3]
  assert counts.most_popular(3) == [(A, 3), (B, 3), (C, 2)]
  assert counts.most_popular(9, before=11) == [(A, 2), (C, 1), (D, 1)]


def test_bad_input_is_named():
  counts = TransitionCounts.fit(HISTORIES, CATALOGUE)
  for rows in ([-2], [4]):
    with pytest.raises(IndexError, match=r"-1\.\.3"):
      counts.count(rows, A)
  with pytest.raises(IndexError, match="4 items"):
    counts.neighbours(-1)
  with pytest.raises(TypeError, match="before"):
    counts.count(A, B, np.nan)
  with pytest.raises(ValueError, match="window"):
    TransitionCounts.fit(HISTORIES, CATALOGUE, window=0)
  with pytest.raises(DataError, match="user 'q': unknown item 'z'"):
    TransitionCounts.fit((History("q", ("z",)),), CATALOGUE)


def test_nothing_fitted_counts_nothing():
  for histories in ((), (History("u", ("a",)),)):
    counts = TransitionCounts.fit(histories, CATALOGUE)
    assert counts.count([A, B], B, 9).tolist() == [0, 0]
    assert counts.neighbours(A) == []
  assert ItemCounts.fit((), CATALOGUE).most_popular(2) == []


@st.composite
def random_histories(draw):
  histories = []
  for user in range(draw(st.integers(0, 4))):
    items = tuple(draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)))
    times = tuple(sorted(draw(st.lists(st.integers(-3, 3), min_size=len(items), max_size=len(items)))))
    histories.append(History(str(user), items, draw(st.sampled_from([times, ()]))))
  return tuple(histories)


@settings(max_examples=60, deadline=None)
@given(random_histories(), st.integers(1, 4), st.booleans(), st.integers(-4, 4) | st.none())
def test_counts_equal_a_plain_loop(histories, window, directed, before):
  expected, taken = np.zeros((4, 4), int), np.zeros(4, int)
  for history in histories:
    rows = CATALOGUE.to_rows(history.items)
    past = [before is None or not history.timestamps or history.timestamps[i] < before for i in range(len(rows))]
    for i, source in enumerate(rows):
      taken[source] += past[i]
      for j in range(i + 1, min(len(rows), i + window + 1)):
        expected[source, rows[j]] += past[j]
        if not directed and source != rows[j]:
          expected[rows[j], source] += past[j]
  everything = np.arange(4)
  counts = TransitionCounts.fit(histories, CATALOGUE, window=window, directed=directed)
  np.testing.assert_array_equal(counts.count(everything[:, None], everything, before), expected)
  np.testing.assert_array_equal(ItemCounts.fit(histories, CATALOGUE).count(everything, before), taken)
  for row in everything:
    order = sorted(everything, key=lambda target: (-expected[row, target], target))
    assert counts.neighbours(row, before) == [(t, expected[row, t]) for t in order if expected[row, t]]


def test_large_catalogues_do_not_overflow_and_long_histories_are_fast():
  size = 300_000  # pair keys reach 9e10 and times 2e9: their product would not fit 64 bits
  catalogue = Catalogue(tuple(Item(str(i), "") for i in range(size)))
  last = size - 1
  walk = np.random.default_rng(0).integers(0, size - 1, 10_000)
  long = History("long", tuple(map(str, walk)), tuple(range(2_000_000_000, 2_000_010_000)))
  histories = (long, History("u", (str(last), str(last)), (0, 2_000_000_000)))
  start = time.perf_counter()
  counts = TransitionCounts.fit(histories, catalogue, window=5)
  found = counts.count(walk[:-1], walk[1:], np.arange(2_000_000_002, 2_000_010_001))
  assert time.perf_counter() - start < 5  # generous: it takes some hundredths of a second
  assert (found >= 1).all()
  assert counts.count(last, last, [2_000_000_000, 2_000_000_001]).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(random_histories(), st.data())
def test_counts_that_are_added_are_those_of_one_fit(histories, data):
  cuts = [data.draw(st.integers(0, len(history.items))) for history in histories]
  parts = [History(h.user, h.items[:cut], h.timestamps[:cut]) for h, cut in zip(histories, cuts, strict=True)]
  rest = Interactions.of(histories, CATALOGUE, cuts)
  options = {"window": data.draw(st.integers(1, 4)), "directed": data.draw(st.booleans())}
  options["groups"] = data.draw(st.sampled_from([None, np.array([0, 1, 0, -1])]))
  for kind, fitted in ((TransitionCounts, options), (ItemCounts, {})):
    whole, added = kind.fit(histories, CATALOGUE, **fitted), kind.fit(parts, CATALOGUE, **fitted).add(rest)
    for name in ("kinds", "times", "codes", "starts"):
      np.testing.assert_array_equal(getattr(whole.events, name), getattr(added.events, name))
  np.testing.assert_array_equal(whole.whens, added.whens)


def test_the_time_of_each_interaction():
  counts = ItemCounts.fit(HISTORIES, CATALOGUE)
  assert counts.time_of([[A], [B]], [0, 1, 2]).tolist() == [[5, 10, 30], [20, 20, 40]]
  assert counts.time_of([A, -1, D], [-1, 0, 0]).tolist() == [NEVER, NEVER, ALWAYS]
  assert ItemCounts.fit((), CATALOGUE).time_of([A], 0).tolist() == [NEVER]
