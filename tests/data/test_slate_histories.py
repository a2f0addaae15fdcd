"""The log of slates alone: one history a user, and no outcome of a request where that request's counts or its judge could see it."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, History, Item, Slate, check_history
from gr2_jax.data.slate_histories import histories_of_slates
from gr2_jax.evidence.counts import TransitionCounts


def slate(user, history, target, time=None):
  return Slate(user, tuple(history), (target, "z"), (1, 0), timestamp=time)


def test_a_history_grows_from_request_to_request():
  later, first = slate("u", "abcd", "e", 30), slate("u", "ab", "c", 20)
  assert histories_of_slates({"train": (later, first)}) == (History("u", tuple("abcd"), (20, 20, 30, 30)),)


@pytest.mark.parametrize(
  ("histories", "items", "times"),
  [
    (["abc", "bcd", "cde"], "abcde", (1, 1, 1, 2, 3)),  # the last three are kept
    (["abc", "bc"], "abc", (1, 1, 1)),  # nothing new
    (["ab", "xy"], "xy", (2, 2)),  # a gap
    (["aba", "abac"], "abac", (1, 1, 1, 2)),
  ],
)
def test_histories_of_a_limited_length(histories, items, times):
  slates = [slate("u", history, "q", time) for time, history in enumerate(histories, start=1)]
  assert histories_of_slates({"train": slates}) == (History("u", tuple(items), times),)


def test_the_log_ends_where_judging_begins():
  slates = {
    "train": (slate("u", "abcd", "e", 40), slate("u", "a", "b", 10), slate("v", "p", "q", 5)),
    "validation": (slate("w", "xy", "q", 50), slate("w", "x", "y", 45)),
    "test": (slate("u", "abc", "d", 30), slate("u", "ab", "c", 20)),
  }
  assert histories_of_slates(slates) == (
    History("u", ("a", "b"), (10, 20)),  # neither c nor d, which are judged
    History("v", ("p",), (5,)),
    History("w", ("x",), (45,)),
  )


def test_at_one_time_the_held_out_request_comes_first():
  slates = {"train": (slate("u", "abc", "d", 20),), "test": (slate("u", "ab", "c", 20),)}
  assert histories_of_slates(slates) == (History("u", ("a", "b"), (20, 20)),)


def test_counts_never_see_the_outcome_of_a_request():
  rng = np.random.default_rng(0)
  items = "abcdefgh"
  catalogue = Catalogue(tuple(Item(name, "") for name in (*items, "z")))
  slates = []
  for user in map(str, range(30)):
    bought = "".join(rng.permutation(list(items)))
    for end in sorted(rng.choice(np.arange(2, 8), 3, replace=False)):
      slates.append(slate(user, bought[max(0, end - 3) : end], bought[end], int(rng.integers(end * 100, end * 100 + 3))))
  log = histories_of_slates({"train": slates})
  for history in log:
    check_history(history, catalogue)
  for of_user in log:
    transitions = TransitionCounts.fit([of_user], catalogue)
    for request in (s for s in slates if s.user == of_user.user):
      source, target = catalogue.to_rows([request.history[-1], request.candidates[0]])
      assert transitions.count(source, target, request.timestamp) == 0
  assert sum(len(history.items) for history in log) > 30 * 3


def test_without_times_no_target_of_another_request_is_in_the_log():
  slates = {
    "train": (slate("u", "ab", "c"), slate("v", "aba", "a"), slate("w", "ab", "a", 3), slate("w", "ba", "b")),
    "test": (slate("u", "abc", "d"), slate("x", "bc", "d", 9)),
  }
  assert histories_of_slates(slates) == (
    History("u", ("a", "b")),
    History("v", ("a", "b", "a")),  # bought again: its own outcome came after
    History("x", ("b", "c"), (9, 9)),  # w is left out: each history holds the other's target
  )
