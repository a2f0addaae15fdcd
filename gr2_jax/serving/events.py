"""Interactions that a served policy's counts are to know, as they come in: the one parser, from Python and as lines of a body."""

from collections.abc import Mapping
from typing import Any

from gr2_jax.data.jsonl import as_id, as_time, required
from gr2_jax.data.schema import DataError
from gr2_jax.evidence.growing import Event
from gr2_jax.serving.request import RequestError, read_object


def parse_event(record: Mapping[str, Any], number: int) -> Event:
  """The event of a mapping with `user`, `item` and `timestamp` (Unix seconds); raises RequestError, which tells its `number`."""
  try:
    unknown = next((name for name in record if name not in Event._fields), None)
    if unknown is not None:
      raise DataError(f"{unknown}: no field of an event; there are {', '.join(Event._fields)}")
    return Event(required(record, "user", as_id), required(record, "item", as_id), required(record, "timestamp", as_time))
  except DataError as error:
    raise RequestError("bad_request", f"event {number}: {error}") from None


def read_events(text: bytes) -> list[Mapping[str, Any]]:
  """The JSON objects of lines, one a line; raises RequestError of the kind broken_json, which tells the number of the line."""
  events: list[Mapping[str, Any]] = []
  for number, line in enumerate(text.splitlines(), start=1):
    try:
      events.append(read_object(line))
    except RequestError as error:
      raise RequestError(error.kind, f"event {number}: {error}") from None
  return events
