"""A log that goes on while it is counted: interactions that came after it was read."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from gr2_jax.data.schema import Catalogue, DataError, History, check_time
from gr2_jax.evidence.counts import ALWAYS, Interactions
from gr2_jax.evidence.requests import FAR, LogCounts


class Event(NamedTuple):
  """A user took an item, at a time in Unix seconds."""

  user: str
  item: str
  timestamp: int


class GrowingLog:
  """The `counts` of histories and of the events that were added since: those of `LogCounts.fit` on the longer histories, bit for bit.

  Counts are replaced, never changed: whoever took them reads on what they were. Several threads may add.
  """

  def __init__(self, histories: Sequence[History], catalogue: Catalogue):
    """Raises DataError for an item that the catalogue lacks."""
    self.counts = LogCounts.fit(histories, catalogue)
    self._catalogue = catalogue
    self._latest = {history.user: _latest(history) for history in histories}
    self._lock = threading.Lock()

  def add(self, events: Sequence[Event]) -> None:
    """Counts events, those of a user in the order of time, behind the user's history or as a new one.

    The arrays of the counts are copied once for all events, which takes about a sixth of a fit; an event that is given twice counts twice.
    Raises DataError, and adds none, for an unknown item, for what is no time in Unix seconds, and for a time before the user's last one.
    """
    with self._lock:
      grown: dict[str, tuple[list[str], list[int]]] = {}
      for number, (user, item, timestamp) in enumerate(events, start=1):
        items, times = grown.get(user) or self._copy_latest(user)
        try:
          self._catalogue.to_rows([item])
          check_time(timestamp, "timestamp")
          if times and timestamp < times[-1]:
            raise DataError(f"timestamp: {timestamp} of user {user!r} lies before {times[-1]}, the user's last; send events in time order")
        except DataError as error:
          raise DataError(f"event {number}: {error}") from None
        items.append(item)
        times.append(timestamp)
        grown[user] = items, times
      if grown:
        histories = [History(user, tuple(items), tuple(times)) for user, (items, times) in grown.items()]
        counted = [len(self._latest[user].items) if user in self._latest else 0 for user in grown]
        self.counts = self.counts.add(Interactions.of(histories, self._catalogue, counted))
        self._latest |= {history.user: _latest(history) for history in histories}

  def _copy_latest(self, user: str) -> tuple[list[str], list[int]]:
    """Items and times of what a user's later items can stand in one history with."""
    history = self._latest.get(user, History(user, ()))
    return list(history.items), list(history.timestamps or (ALWAYS,) * len(history.items))


def _latest(history: History) -> History:
  return History(history.user, history.items[-FAR:], history.timestamps[-FAR:])
