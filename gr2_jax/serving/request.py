"""What a re-ranker is asked and what it answers, and the checks that a request passes before any work starts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gr2_jax.data.jsonl import as_id, as_integer, as_time, required, to_item
from gr2_jax.data.schema import DataError, Item

MODES = ("reason", "direct", "score")
KINDS = (
  "bad_request",  # not the shape of a request
  "no_candidates",
  "repeated_candidate",
  "too_many",  # candidates, history items or presentations
  "unknown_item",
  "too_long",  # the candidates do not fit the prompt
  "unknown_mode",
)


class RequestError(DataError):
  """A request that cannot be ranked; `kind` is one of KINDS."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


@dataclasses.dataclass(frozen=True)
class Request:
  """Past items of a user, oldest first, and candidates in the upstream order; each an id of the catalogue, or an item with its text.

  `mode`: reason (decode a reasoning, then the order), direct (the order at once) or score (one pass, nothing decoded); None: the
  re-ranker's own. `presentations`: in how many orders the slate is shown, the upstream one first; above 1 their Borda counts decide.
  `timestamp`: Unix seconds of the request; co-occurrence hints count only what happened before it (None: the whole log).
  """

  history: tuple[str | Item, ...]
  candidates: tuple[str | Item, ...]
  id: str | None = None
  timestamp: int | None = None
  mode: str | None = None
  presentations: int | None = None


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The answer to a request: always all of its candidates.

  `order`: candidate ids, best first, with their `scores`, which never increase: log-probabilities (nats) of being named first in mode
  score with one presentation, else Borda points as a share of the most possible. `reasoning`: the text of the first presentation, None
  where nothing was reasoned. `timings`: milliseconds of preparing, and of the device's work on its batch. `fallback`: the upstream
  order was given for the `reason`. `history_tokens`: the tokens of the history that the prompt held. `dropped_history`: history items
  left out, because the prompt or the compressor's budget has no room for the oldest, or because they are new and have no soft tokens.
  `compressor`: what shortened the history, one of `compression.rules.VARIANTS` ("rules" where the rewriter has no text of it), or None.
  `unknown_history`: history items left out because nothing is known of them, or because this re-ranker cannot place new items.
  `assigned`: items that are not in the catalogue and were given a semantic ID, by their text or as `guessed` says: id -> what they share
  with the items among which they were placed, "category", "brand", or nothing, which is the "centre" of the catalogue.
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
  """The request of a JSON object: `history` and `candidates`, `id`, `timestamp`, `mode` and `presentations` when given; the rest is
  ignored, so that a line of a slates file is a request. Raises RequestError.
  """
  kinds: tuple[tuple[str, Callable[[Any, str], Any]], ...] = (
    ("id", as_id),
    ("timestamp", as_time),
    ("mode", as_id),
    ("presentations", as_integer),
  )
  try:
    return Request(
      history=_items(required(record, "history", _as_list), "history"),
      candidates=_items(required(record, "candidates", _as_list), "candidates"),
      **{name: parse(record[name], name) for name, parse in kinds if record.get(name) is not None},
    )
  except RequestError:
    raise
  except DataError as error:
    raise RequestError("bad_request", str(error)) from None


def _as_list(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise DataError(f"{name}: {value!r} is not a list; write it as [..]")
  return value


def _items(values: list[Any], name: str) -> tuple[str | Item, ...]:
  return tuple(to_item(value) if isinstance(value, dict) else as_id(value, name) for value in values)
