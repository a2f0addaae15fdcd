"""A log for those who have slates alone: what each user's requests show of the past, and no outcome of a request that is judged."""

from collections import Counter
from collections.abc import Mapping, Sequence

from gr2_jax.data.schema import History, Slate


def histories_of_slates(slates: Mapping[str, Sequence[Slate]]) -> tuple[History, ...]:
  """One history a user, from the slates by split; users in the order in which they first stand there.

  Where all requests of a user have timestamps, it is what they show up to the first of validation or test, which ends before every outcome
  that is judged. An item has the time of the first request that shows it: counts see it in later requests only, hence never in the one
  that it was the outcome of. Otherwise it is the longest history that holds no target of the user's other requests, without times; a user
  who has none such is left out.
  """
  by_user: dict[str, list[tuple[bool, Slate]]] = {}
  for split, records in slates.items():
    for slate in records:
      by_user.setdefault(slate.user, []).append((split == "train", slate))
  histories = []
  for user, requests in by_user.items():
    timed = [(slate.timestamp, of_train, slate.history) for of_train, slate in requests if slate.timestamp is not None]
    if len(timed) == len(requests):
      histories.append(History(user, *_grow(timed)))
    elif safe := _without_targets([slate for _, slate in requests]):
      histories.append(History(user, max(safe, key=len)))
  return tuple(histories)


def _grow(requests: Sequence[tuple[int, bool, tuple[str, ...]]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Items and their times, from (time, whether of training, history) of each request."""
  items: tuple[str, ...] = ()
  times: tuple[int, ...] = ()
  for time, of_train, history in sorted(requests, key=lambda request: request[:2]):  # at one time those that are held out come first
    known = _overlap(items, history)
    if not known:  # it does not continue the log, such as after a gap longer than the histories that are kept
      items, times = (), ()
    items += history[known:]
    times += (time,) * (len(history) - known)
    if not of_train:
      break
  return items, times


def _overlap(log: tuple[str, ...], history: tuple[str, ...]) -> int:
  """How many of the history's first items are the log's last."""
  return next((n for n in range(min(len(log), len(history)), 0, -1) if log[-n:] == history[:n]), 0)


def _without_targets(slates: Sequence[Slate]) -> list[tuple[str, ...]]:
  """Histories in which no target of another one of the slates stands."""
  targets = Counter(item for slate in slates for item in slate.targets)
  return [slate.history for slate in slates if all(targets[item] == (item in slate.targets) for item in slate.history)]
