"""What of a log is learnt, and what is asked: leave-one-out (each user's last items), or by time (the last days of the log)."""

import bisect
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr2_jax.data.schema import DataError, History, check_history

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class NextItem:
  """A next-item request: what the user had taken before (oldest first), and the item taken then.

  `timestamp`: Unix seconds of the target. `segment`: `same_day` or `different_day`, by whether the item before the target
  was taken on the target's day (UTC), where the order of the two may be a tie-break. `last_time`: Unix seconds of
  the history's last item. All None without timestamps.
  """

  user: str
  history: tuple[str, ...]
  target: str
  timestamp: int | None = None
  segment: str | None = None
  last_time: int | None = None


@dataclasses.dataclass(frozen=True)
class Split:
  """Training histories and the two sets of requests."""

  train: tuple[History, ...]
  validation: tuple[NextItem, ...]
  test: tuple[NextItem, ...]


def cut_history(history: History, end: int) -> History:
  """The first `end` interactions."""
  return dataclasses.replace(history, items=history.items[:end], timestamps=history.timestamps[:end])


def _check_max_history(max_history: int) -> None:
  if max_history < 1:
    raise ValueError(f"max_history: {max_history}; a request needs at least one item of history")


def _request(history: History, position: int, max_history: int) -> NextItem:
  past = history.items[max(0, position - max_history) : position]
  if not history.timestamps:
    return NextItem(history.user, past, history.items[position])
  before, now = history.timestamps[position - 1], history.timestamps[position]
  segment = "same_day" if before // SECONDS_PER_DAY == now // SECONDS_PER_DAY else "different_day"
  return NextItem(history.user, past, history.items[position], now, segment, before)


def leave_one_out(histories: Sequence[History], max_history: int) -> Split:
  """Splits every history of three items or more into train, validation target and test target (the protocol of SASRec and TIGER).

  A request's history is cut from its old end to `max_history` items; training histories stay whole, since they are what is
  counted and fitted. A user with fewer than three items goes wholly to training, the others stand in validation and test in the same
  order. Raises DataError for a broken history.
  """
  _check_max_history(max_history)
  train, validation, test = [], [], []
  for history in histories:
    check_history(history)
    size = len(history.items)
    if size < 3:
      train.append(history)
      continue
    train.append(cut_history(history, size - 2))
    validation.append(_request(history, size - 2, max_history))
    test.append(_request(history, size - 1, max_history))
  return Split(tuple(train), tuple(validation), tuple(test))


def first_days(histories: Sequence[History]) -> tuple[int, int]:
  """Unix seconds at which the days of validation and of test begin: the last tenth of days is test, the tenth before validation.

  Days (UTC) are those of the log that have an interaction, however many. Raises DataError for a history without timestamps, and for fewer
  than ten days.
  """
  for history in histories:
    if not history.timestamps:
      raise DataError(f"split: 'time' needs the time of every interaction, and user {history.user!r} has no timestamps; use leave_one_out")
  days = sorted({time // SECONDS_PER_DAY for history in histories for time in history.timestamps})
  tenth = len(days) // 10
  if not tenth:
    raise DataError(
      f"split: 'time' takes tenths of the days on which something happened, and the log has {len(days)}, of ten that are needed; bring a "
      "longer log, or use leave_one_out"
    )
  return days[-2 * tenth] * SECONDS_PER_DAY, days[-tenth] * SECONDS_PER_DAY


def split_by_time(histories: Sequence[History], max_history: int) -> Split:
  """Splits all histories at the `first_days` of validation and test, so that nothing that is learnt happened after a request.

  Every interaction of these days is a request, whose history is what its user had taken before, on whatever day; it is cut from its old
  end to `max_history` items. A user's first interaction has no history and is no request. Users without an interaction before the
  validation's days are not in training. Raises DataError for a broken history, for days that cannot be split (see `first_days`), and
  where validation or test would be left without a request.
  """
  _check_max_history(max_history)
  for history in histories:
    check_history(history)
  starts = first_days(histories)
  train: list[History] = []
  validation: list[NextItem] = []
  test: list[NextItem] = []
  for history in histories:
    learnt, ended = (bisect.bisect_left(history.timestamps, start) for start in starts)
    if learnt:
      train.append(cut_history(history, learnt))
    for position in range(max(learnt, 1), len(history.items)):
      (validation if position < ended else test).append(_request(history, position, max_history))
  for name, of, start in zip(("validation", "test"), (validation, test), starts, strict=True):
    if not of:
      raise DataError(
        f"split: 'time' leaves no {name} request, since nobody who took an item on the days from {write_day(start)} had taken one before; "
        "bring a longer log, or use leave_one_out"
      )
  return Split(tuple(train), tuple(validation), tuple(test))


SPLITTERS: Mapping[str, Callable[[Sequence[History], int], Split]] = {"leave_one_out": leave_one_out, "time": split_by_time}


def find_unseen(train: Sequence[History], users: Sequence[str], targets: Sequence[str]) -> dict[str, np.ndarray]:
  """Which requests are of a user or for an item that the training histories lack, and which of neither; `[n]` bool by name.

  `users [n]`, `targets [n]`: those of the requests.
  """
  known_users = {history.user for history in train}
  known_items = {item for history in train for item in history.items}
  user = np.array([user not in known_users for user in users], bool)
  item = np.array([target not in known_items for target in targets], bool)
  return {"seen_users_and_items": ~(user | item), "unseen_users": user, "unseen_items": item}


def write_day(time: int) -> str:
  """The day (UTC) of Unix seconds."""
  return datetime.datetime.fromtimestamp(time, datetime.UTC).date().isoformat()
