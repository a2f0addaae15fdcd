"""Leave-one-out and the split by time: hand-derived cases and the property that nothing is lost or seen early."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError, History
from gr2_jax.data.splits import SPLITTERS, NextItem, find_unseen, first_days, leave_one_out, split_by_time

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
  for split in SPLITTERS.values():
    with pytest.raises(ValueError, match="max_history"):
      split([], max_history=0)


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


# By time. The log has an event on the days 0..7, 50 and 1,000: ten, so that day 50 is validation's and day 1,000 the test's.
EVERY_DAY = History("d", tuple("abcdefgh"), tuple(day * DAY for day in range(8)))


def test_the_last_tenth_of_days_with_events_is_test_and_the_tenth_before_validation():
  split = split_by_time(
    [
      EVERY_DAY,
      History("u", ("a", "x", "b", "y", "c"), (7 * DAY, 8 * DAY - 1, 50 * DAY, 51 * DAY - 1, 1000 * DAY)),
      History("v", ("a", "z"), (50 * DAY + 5, 1000 * DAY + 9)),  # whose first interaction has no history
      History("w", ("b",), (1000 * DAY,)),
    ],
    max_history=2,
  )
  assert split.train == (EVERY_DAY, History("u", ("a", "x"), (7 * DAY, 8 * DAY - 1)))
  assert split.validation == (
    NextItem("u", ("a", "x"), "b", 50 * DAY, "different_day", 8 * DAY - 1),
    NextItem("u", ("x", "b"), "y", 51 * DAY - 1, "same_day", 50 * DAY),
  )
  assert split.test == (
    NextItem("u", ("b", "y"), "c", 1000 * DAY, "different_day", 51 * DAY - 1),
    NextItem("v", ("a",), "z", 1000 * DAY + 9, "different_day", 50 * DAY + 5),
  )
  unseen = find_unseen(split.train, [request.user for request in split.test], [request.target for request in split.test])
  assert {name: of.tolist() for name, of in unseen.items()} == {
    "seen_users_and_items": [True, False],
    "unseen_users": [False, True],
    "unseen_items": [False, True],
  }


def test_a_tenth_of_days_is_rounded_down():
  histories = [History("u", tuple(map(str, range(29))), tuple(3 * DAY * i for i in range(29)))]
  assert first_days(histories) == (25 * 3 * DAY, 27 * 3 * DAY)


@pytest.mark.parametrize(
  ("histories", "message"),
  [
    ([EVERY_DAY, History("u", ("a", "b"))], "split: 'time' needs the time of every interaction, and user 'u' has no timestamps"),
    ([History("u", ("a", "b", "c"), (5, 6, DAY - 1))], "the log has 1, of ten that are needed"),
    ([EVERY_DAY, History("u", ("a",), (8 * DAY,))], "the log has 9, of ten"),
    ([], "the log has 0, of ten"),
    ([EVERY_DAY, History("u", ("a", "b"), (DAY, 8 * DAY)), History("v", ("a",), (9 * DAY,))], "no test request, .* from 1970-01-10"),
    ([EVERY_DAY, History("u", ("a",), (8 * DAY,)), History("v", ("a", "b"), (0, 9 * DAY))], "no validation request, .* from 1970-01-09"),
    ([EVERY_DAY, History("u", ("a", "b"), (2, 1))], "they decrease"),
  ],
)
def test_a_log_that_time_cannot_split(histories, message):
  with pytest.raises(DataError, match=message):
    split_by_time(histories, max_history=5)


logs = st.lists(st.lists(st.integers(0, 30 * DAY), min_size=1, max_size=9).map(sorted), min_size=1, max_size=6)


def log_of(times):
  """Ten days of a busy user, and others at these times."""
  busy = History("busy", tuple(f"b{day}" for day in range(31)), tuple(day * DAY for day in range(31)))
  return [busy, *(History(f"u{u}", tuple(f"{u}-{i}" for i in range(len(of))), tuple(of)) for u, of in enumerate(times))]


@settings(max_examples=50, deadline=None)
@given(logs, st.integers(1, 9))
def test_by_time_every_interaction_lands_once_and_what_is_learnt_comes_before_every_request(times, max_history):
  histories = log_of(times)
  split = split_by_time(histories, max_history)
  validation_from, test_from = first_days(histories)
  learnt = [time for history in split.train for time in history.timestamps]
  assert max(learnt) < validation_from <= min(request.timestamp for request in split.validation)
  assert max(request.timestamp for request in split.validation) < test_from <= min(request.timestamp for request in split.test)
  requests = [*split.validation, *split.test]
  without_history = [of.items[0] for of in histories if of.timestamps[0] >= validation_from]
  landed = [item for history in split.train for item in history.items] + [request.target for request in requests] + without_history
  assert sorted(landed) == sorted(item for history in histories for item in history.items)
  whole = {history.user: history for history in histories}
  for request in requests:
    position = whole[request.user].items.index(request.target)
    assert request.history == whole[request.user].items[max(0, position - max_history) : position] != ()
    assert request.last_time <= request.timestamp == whole[request.user].timestamps[position]
