"""Chronological leave-one-out: a user's last item is the test target, the last but one the validation target."""

import dataclasses
from collections.abc import Sequence

from gr2_jax.data.schema import History, check_history

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
  """Training histories and the two sets of requests; validation and test hold the same users in the same order."""

  train: tuple[History, ...]
  validation: tuple[NextItem, ...]
  test: tuple[NextItem, ...]


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
  counted and fitted. A user with fewer than three items goes wholly to training. Raises DataError for a broken history.
  """
  if max_history < 1:
    raise ValueError(f"max_history: {max_history}; a request needs at least one item of history")
  train, validation, test = [], [], []
  for history in histories:
    check_history(history)
    size = len(history.items)
    if size < 3:
      train.append(history)
      continue
    train.append(dataclasses.replace(history, items=history.items[:-2], timestamps=history.timestamps[:-2]))
    validation.append(_request(history, size - 2, max_history))
    test.append(_request(history, size - 1, max_history))
  return Split(tuple(train), tuple(validation), tuple(test))
