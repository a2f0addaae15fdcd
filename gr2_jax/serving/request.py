"""What a re-ranker is asked, told and answers, and the one parser of requests and events, from wherever they come."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.jsonl import as_id, as_integer, as_number, as_time, parse_object, required, to_item
from gr2_jax.data.schema import DataError, Item, Slate
from gr2_jax.evidence.growing import Event

MODES = ("reason", "direct", "score")
KINDS = (
  "broken_json",  # not a JSON object
  "bad_request",  # not the shape of a request
  "no_candidates",
  "repeated_candidate",
  "too_many",  # candidates, history items or presentations
  "unknown_item",
  "too_long",  # the candidates do not fit the prompt
  "unknown_mode",  # none that is served
  "no_counts",  # events for a policy that counts none
)
# What a line of a slates file holds besides, so that it is a request; none of it decides the answer.
SLATE_FIELDS = ("user", "labels", "propensities", "weight", "segment")
ITEM_FIELDS = ("item", "title", "brand", "categories", "description", "price")


class RequestError(DataError):
  """A request that cannot be ranked; `kind` is one of KINDS."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


@dataclasses.dataclass(frozen=True)
class Request:
  """Past items of a user, oldest first, and candidates in the upstream order; each an id of the catalogue, or an item with its text.

  Ids are strings or integers, which become strings; an item is an `Item`, or a mapping with some of ITEM_FIELDS.
  `mode`: reason (decode a reasoning, then the order), direct (the order at once) or score (one pass, nothing decoded); None: the
  re-ranker's own. `presentations`: in how many orders the slate is shown, the upstream one first; above 1 their Borda counts decide.
  `timestamp`: Unix seconds of the request; what is counted in the log happened before it (None: the whole log). `upstream_scores`: one
  number for each candidate, and `last_time`: Unix seconds of the history's last item; only facts read the two.

  However it is made, from Python, a line or a body, it is checked here; raises RequestError for a field of another type.
  """

  history: tuple[str | Item, ...]
  candidates: tuple[str | Item, ...]
  id: str | None = None
  timestamp: int | None = None
  mode: str | None = None
  presentations: int | None = None
  upstream_scores: tuple[float, ...] | None = None
  last_time: int | None = None

  def __post_init__(self) -> None:
    parsers: dict[str, Callable[[Any, str], Any]] = {
      "id": _as_id,
      "timestamp": _as_time,
      "mode": _as_mode,
      "presentations": _as_integer,
      "upstream_scores": _as_numbers,
      "last_time": _as_time,
    }
    try:
      for name in ("history", "candidates"):
        object.__setattr__(self, name, _as_items(getattr(self, name), name))
      for name, parse in parsers.items():
        if getattr(self, name) is not None:
          object.__setattr__(self, name, parse(getattr(self, name), name))
      self._check_scores_and_times()
    except RequestError:
      raise
    except DataError as error:
      raise RequestError("bad_request", str(error)) from None

  def to_slate(self, history: tuple[str, ...]) -> Slate:
    """The request as a slate without labels, with those of its past items that are known."""
    candidates = tuple(map(item_id, self.candidates))
    return Slate(
      self.id or "",
      history,
      candidates,
      (0,) * len(candidates),
      upstream_scores=self.upstream_scores,
      timestamp=self.timestamp,
      last_time=self.last_time,
    )

  def _check_scores_and_times(self) -> None:
    scores, size = self.upstream_scores, len(self.candidates)
    if scores is not None and len(scores) != size:
      raise DataError(f"upstream_scores: {len(scores)} for {size} candidates; give one for each or leave the field out")
    if self.last_time is not None and self.timestamp is not None and self.last_time > self.timestamp:
      raise DataError(f"last_time: {self.last_time} lies after the request's timestamp {self.timestamp}; a history is past")


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The answer to a request: always all of its candidates.

  `order`: candidate ids, best first, with their `scores`, which never increase: log-probabilities (nats) of being named first in mode
  score with one presentation or of a scored policy, else Borda points as a share of the most possible. `reasoning`: the text of the first
  presentation, None where nothing was reasoned. `timings`: milliseconds of preparing, and of the device's work on its batch. `fallback`:
  the upstream order was given for the `reason`. `history_tokens`: the tokens of the history that the prompt held. `dropped_history`:
  history items left out, because the prompt or the compressor's budget has no room for the oldest, because they are new and have no soft
  tokens, or because a scored policy reads only the latest.
  `compressor`: what shortened the history, one of `compression.rules.VARIANTS` ("rules" where the rewriter has no text of it), or None.
  `unknown_history`: history items left out because nothing is known of them, or because this re-ranker cannot place new items.
  `assigned`: items that are not in the catalogue and were given a semantic ID, or for a scored policy a place among those of the catalogue,
  by their text or as `guessed` says: id -> what they share with the items among which they were placed, "category", "brand", or nothing,
  which is the "centre" of the catalogue.
  """

  order: tuple[str, ...]
  scores: tuple[float, ...]
  reasoning: str | None
  timings: Mapping[str, float]
  fallback: bool = False
  reason: str | None = None
  history_tokens: int = 0
  dropped_history: int = 0
  compressor: str | None = None
  unknown_history: int = 0
  assigned: tuple[str, ...] = ()
  guessed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def upstream_ranking(candidates: Sequence[str], reason: str, **fields: Any) -> Ranking:
  """The fallback: the candidates as they came."""
  return Ranking(tuple(candidates), borda_scores(len(candidates)), None, fields.pop("timings", {}), True, reason, **fields)


def borda_scores(size: int) -> tuple[float, ...]:
  """Points of one order as shares of the most possible: 1 for the first, 0 for the last."""
  return tuple((size - 1 - place) / max(size - 1, 1) if size > 1 else 1.0 for place in range(size))


def item_id(item: str | Item) -> str:
  """The id of an item given by id or with text."""
  return item.id if isinstance(item, Item) else item


def parse_request(record: Mapping[str, Any]) -> Request:
  """The request of a mapping: the fields of `Request`, and those of a slate (SLATE_FIELDS), of which `user` is the id where there is none.

  Raises RequestError, also for a field of any other name.
  """
  names = tuple(field.name for field in dataclasses.fields(Request))
  unknown = next((name for name in record if name not in (*names, *SLATE_FIELDS)), None)
  if unknown is not None:
    raise RequestError("bad_request", f"{unknown}: no field of a request; there are {', '.join((*names, *SLATE_FIELDS))}")
  fields: dict[str, Any] = {name: record.get(name) for name in names}
  if fields["id"] is None:
    fields["id"] = record.get("user")
  return Request(**fields)


def read_request(text: bytes) -> Request:
  """The request of a JSON object, a line or a body; raises RequestError, of the kind broken_json where it is none."""
  return parse_request(read_object(text))


def parse_event(record: Any, number: int) -> Event:
  """The event of a mapping with `user`, `item` and `timestamp` (Unix seconds); raises RequestError, which tells its `number`."""
  try:
    if not isinstance(record, Mapping):
      raise DataError(f"{record!r} is no mapping; give {', '.join(Event._fields)}")
    unknown = next((name for name in record if name not in Event._fields), None)
    if unknown is not None:
      raise DataError(f"{unknown}: no field of an event; there are {', '.join(Event._fields)}")
    return Event(required(record, "user", _as_id), required(record, "item", _as_id), required(record, "timestamp", _as_time))
  except DataError as error:
    raise RequestError("bad_request", f"event {number}: {error}") from None


def read_events(text: bytes) -> list[dict[str, Any]]:
  """The JSON objects of lines; raises RequestError of the kind broken_json, which tells the number of the line."""
  events: list[dict[str, Any]] = []
  for number, line in enumerate(text.splitlines(), start=1):
    try:
      events.append(read_object(line))
    except RequestError as error:
      raise RequestError(error.kind, f"event {number}: {error}") from None
  return events


def read_object(text: bytes) -> dict[str, Any]:
  """A JSON object; raises RequestError of the kind broken_json."""
  try:
    return parse_object(text)
  except DataError as error:
    raise RequestError("broken_json", str(error)) from None


def _as_items(values: Any, name: str) -> tuple[str | Item, ...]:
  if values is None:
    raise DataError(f"{name}: missing; every request needs this field")
  if isinstance(values, np.ndarray):
    values = values.tolist()
  if not isinstance(values, list | tuple):
    raise DataError(f"{name}: {values!r} is not a list; write it as [..]")
  return tuple(_as_item(value, name) for value in values)


def _as_numbers(values: Any, name: str) -> tuple[float, ...]:
  if isinstance(values, np.ndarray):
    values = values.tolist()
  if not isinstance(values, list | tuple):
    raise DataError(f"{name}: {values!r} is not a list; write it as [..]")
  return tuple(as_number(value.item() if isinstance(value, np.generic) else value, name) for value in values)


def _as_item(value: Any, name: str) -> str | Item:
  if isinstance(value, Item):
    value = {field: getattr(value, "id" if field == "item" else field) for field in ITEM_FIELDS} | {"categories": list(value.categories)}
  if not isinstance(value, Mapping):
    return _as_id(value, name)
  unknown = next((field for field in value if field not in ITEM_FIELDS), None)
  if unknown is not None:
    raise DataError(f"{name}: {unknown!r} is no field of an item; there are {', '.join(ITEM_FIELDS)}")
  if value.get("item") is None:
    raise DataError(f"{name}: an item without its id; give it as 'item'")
  return to_item({"title": None, **value, "item": _as_id(value["item"], name)})


def _as_id(value: Any, name: str) -> str:
  return as_id(int(value) if isinstance(value, np.integer) else value, name)


def _as_integer(value: Any, name: str) -> int:
  return as_integer(_whole(value), name)


def _as_time(value: Any, name: str) -> int:
  return as_time(_whole(value), name)


def _whole(value: Any) -> Any:
  """A number without a fraction as the integer that it is, anything else as it came."""
  return int(value) if isinstance(value, np.integer) or (isinstance(value, float) and value.is_integer()) else value


def _as_mode(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise DataError(f"{name}: {value!r} is not text; write it as a string")
  return value
