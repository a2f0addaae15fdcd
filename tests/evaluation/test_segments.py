"""Buckets of test slates: each slate lies where its history, its target and its times say."""

import numpy as np
import pytest

from gr2_jax.data.schema import History, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.data.splits import SECONDS_PER_DAY
from gr2_jax.evaluation.segments import bucket_slates, popularity_classes

# Events by item: a 5, b 3, c 1, d 1; ten in all. Before a stand none, before b 5, before c and d, which tie, 8.
LOG = (History("u", ("a", "a", "a", "b", "c")), History("v", ("a", "a", "b", "b", "d")))


def make_slate(history=1, labels=(1, 0, 0, 0, 0, 0, 0), candidates=("a", "b", "c", "d", "x", "y", "z"), **times):
  return Slate("u", ("h",) * history, candidates, labels, **times)


def where(slates, dimension):
  buckets = bucket_slates(slates, slate_labels(slates), LOG)[dimension]
  return {name: np.flatnonzero(inside).tolist() for name, inside in buckets.items() if inside.any()}


def test_popularity_goes_by_events_and_items_that_tie_share_a_class():
  assert popularity_classes(LOG) == {"a": "head", "b": "torso", "c": "tail", "d": "tail"}
  assert popularity_classes(LOG[:1]) == {"a": "head", "b": "torso", "c": "torso"}  # before b and c stand three events of five
  assert popularity_classes(()) == {}


def test_history_lengths_meet_at_their_edges():
  slates = [make_slate(history) for history in (1, 5, 6, 10, 11, 20, 21, 50)]
  assert where(slates, "history_length") == {"1 to 5": [0, 1], "6 to 10": [2, 3], "11 to 20": [4, 5], "21 or more": [6, 7]}


def test_the_target_is_the_first_of_the_best_label():
  labels = np.eye(7, dtype=int)
  slates = [make_slate(labels=tuple(row)) for row in labels.tolist()] + [make_slate(labels=(0, 1, 2, 2, 0, 0, 0))]
  assert where(slates, "upstream_place") == {"1": [0], "2 to 3": [1, 2, 7], "4 to 6": [3, 4, 5], "7 or more": [6]}
  # c, d, and all that the log does not know are of the tail.
  assert where(slates, "target_popularity") == {"head": [0], "torso": [1], "tail": [2, 3, 4, 5, 6, 7]}


@pytest.mark.parametrize("segment", [None, "mobile"])
def test_the_day_is_that_of_both_times(segment):
  day = SECONDS_PER_DAY
  times = [(day, 2 * day - 1), (day - 1, day), (None, day), (None, None)]
  slates = [make_slate(last_time=last, timestamp=now, segment=segment) for last, now in times]
  assert where(slates, "day") == {"same_day": [0], "different_day": [1]}


def test_what_slates_say_of_the_day_themselves_is_not_said_twice():
  slates = [make_slate(segment="same_day", last_time=1, timestamp=2), make_slate()]
  assert "day" not in bucket_slates(slates, slate_labels(slates), LOG)
