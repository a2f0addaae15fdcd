"""Leave-one-out: hand-derived cases and the property that nothing is lost or seen early."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError, History
from gr2_jax.data.splits import NextItem, leave_one_out

DAY = 86_400


def test_last_is_test_and_last_but_one_is_validation():
  history = History("u", ("a", "b", "c", "d"), (0, DAY - 1, DAY, 2 * DAY - 1))
  split = leave_one_out([history], max_history=50)
  assert split.train == (History("u", ("a", "b"), (0, DAY - 1)),)
  # c at the first second of day 1, b at the last of day 0; d in the last second of c's day.
  assert split.validation == (NextItem("u", ("a", "b"), "c", DAY, "different_day", DAY - 1),)
  assert split.test == (NextItem("u", ("a", "b", "c"), "d", 2 * DAY - 1, "same_day", DAY),)


def test_without_timestamps_there_is_no_segment():
  split = leave_one_out([History("u", ("a", "b", "c"))], max_history=50)
  assert split.train == (History("u", ("a",)),)
  assert split.test == (NextItem("u", ("a", "b"), "c", None, None),)


def test_short_users_go_wholly_to_training():
  short = [History("u", ("a",), (1,)), History("v", ("a", "b"), (1, 2))]
  split = leave_one_out(short, max_history=5)
  assert split.train == tuple(short)
  assert split.validation == split.test == ()


def test_requests_are_cut_from_the_old_end_and_training_is_not():
  split = leave_one_out([History("u", tuple("abcdef"))], max_history=2)
  assert split.train[0].items == tuple("abcd")
  assert split.validation[0].history == ("c", "d")
  assert split.test[0].history == ("d", "e")


def test_ten_thousand_items_work():
  items = tuple(map(str, range(10_000)))
  split = leave_one_out([History(str(user), items, tuple(range(10_000))) for user in range(20)], max_history=50)
  assert split.test[0].history == items[-51:-1]


def test_bad_input():
  with pytest.raises(DataError, match="they decrease"):
    leave_one_out([History("u", ("a", "b", "c"), (3, 2, 1))], max_history=5)
  with pytest.raises(ValueError, match="max_history"):
    leave_one_out([], max_history=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=5), st.integers(1, 9))
def test_every_interaction_lands_once_and_requests_see_only_their_past(sizes, max_history):
  histories = [History(str(u), tuple(f"{u}-{i}" for i in range(n)), tuple(range(n))) for u, n in enumerate(sizes)]
  split = leave_one_out(histories, max_history)
  landed = [i for h in split.train for i in h.items] + [r.target for r in split.validation + split.test]
  assert sorted(landed) == sorted(i for h in histories for i in h.items)
  whole = {h.user: h.items for h in histories}
  for request in split.validation + split.test:
    items = whole[request.user]
    position = items.index(request.target)
    assert request.history == items[max(0, position - max_history) : position] != ()
    assert request.timestamp == position
