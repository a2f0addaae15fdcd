"""JSONL in and out: items, interactions and slates, plain or gzip, with every bad line named."""

import contextlib
import dataclasses
import gzip
import itertools
import json
import math
import operator
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, TypeVar

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate, check_history, check_item, check_slate, check_time
from gr2_jax.files import replacing

Path = str | os.PathLike[str]
OnError = Literal["stop", "skip"]
Record = TypeVar("Record")

INTEGER_LIMIT = 2**62  # keeps times and labels inside int64, with room for differences


class BadLineError(DataError):
  """A line that cannot be used, and that reading with `on_error="skip"` would leave out."""


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A whole `line` of a file, counted from 1, or one `event` of a line that is kept."""

  file: str
  line: int
  left_out: Literal["line", "event"]
  reason: str


@dataclasses.dataclass
class BadLines:
  """Collects what reading with `on_error="skip"` leaves out."""

  lines: list[LeftOut] = dataclasses.field(default_factory=list)
  events: list[LeftOut] = dataclasses.field(default_factory=list)

  def add_line(self, file: Path, line: int, reason: str) -> None:
    """Notes one line that is left out."""
    self.lines.append(LeftOut(os.fspath(file), line, "line", reason))

  def add_event(self, file: Path, line: int, reason: str) -> None:
    """Notes one interaction that is left out of its line."""
    self.events.append(LeftOut(os.fspath(file), line, "event", reason))

  def write(self, path: Path) -> None:
    """Writes one JSON object `{"file", "line", "left_out", "reason"}` for each line and each event."""
    _write_objects(path, map(dataclasses.asdict, (*self.lines, *self.events)))


# One line to one record: pure functions of the line's bytes.


def _as_text(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise DataError(f"{name}: {value!r} is not text; write it as a string")
  return value


def as_id(value: Any, name: str) -> str:
  """`value` of field `name` as an id; an integer becomes a string. Raises DataError for anything else."""
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise DataError(f"{name}: {value!r} is not an id; use a string or an integer")
  if value == "":
    raise DataError(f"{name}: empty id; give every user and item one")
  return str(value)


def as_integer(value: Any, name: str) -> int:
  """`value` of field `name`, which must be an integer that fits 64 bits; raises DataError for anything else."""
  if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= INTEGER_LIMIT:
    raise DataError(f"{name}: {value!r} is not a 64-bit integer; write whole numbers")
  return value


def as_time(value: Any, name: str) -> int:
  """`value` of field `name` as Unix seconds; raises DataError for anything but an integer from 0 to below 1e11."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise DataError(f"{name}: {value!r} is no time; write whole Unix seconds")
  check_time(value, name)
  return value


def as_number(value: Any, name: str) -> float:
  """`value` of field `name` as a finite number; raises DataError for anything else."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise DataError(f"{name}: {value!r} is not a number; leave the field out when unknown")
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise DataError(f"{name}: the number is too large; leave the field out when unknown")
  return number


def _as_tuple_of(parse: Callable[[Any, str], Record]) -> Callable[[Any, str], tuple[Record, ...]]:
  def parse_list(value: Any, name: str) -> tuple[Record, ...]:
    if not isinstance(value, list):
      raise DataError(f"{name}: {value!r} is not a list; write it as [..]")
    return tuple(parse(element, name) for element in value)

  return parse_list


_as_ids, _as_texts = _as_tuple_of(as_id), _as_tuple_of(_as_text)
_as_integers, _as_numbers, _as_times = _as_tuple_of(as_integer), _as_tuple_of(as_number), _as_tuple_of(as_time)


def required(record: Mapping[str, Any], name: str, parse: Callable[[Any, str], Record]) -> Record:
  """Field `name` of the record as `parse(value, name)` gives it; raises DataError when it is missing or null."""
  if record.get(name) is None:
    raise DataError(f"{name}: missing; every line needs this field")
  return parse(record[name], name)


def _optional(record: Mapping[str, Any], name: str, parse: Callable[[Any, str], Record], default: Any = None) -> Any:
  return default if record.get(name) is None else parse(record[name], name)


def _holds_non_finite(value: Any) -> bool:
  if isinstance(value, float):
    return not math.isfinite(value)
  if isinstance(value, dict):
    return any(map(_holds_non_finite, value.values()))
  return isinstance(value, list) and any(map(_holds_non_finite, value))


def decode_line(line: bytes) -> str:
  """The text of one line; raises DataError for bytes that are not UTF-8."""
  try:
    return line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(f"byte {error.start + 1}: not UTF-8; save the file as UTF-8") from None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  record = dict(pairs)
  if len(record) < len(pairs):
    names = [name for name, _ in pairs]
    raise DataError(f"{next(name for name in names if names.count(name) > 1)}: given twice; keep one of the two")
  return record


def parse_object(line: bytes) -> dict[str, Any]:
  """The JSON object of one line; raises DataError for anything else (NaN and Infinity are not JSON, and a name may stand once)."""
  text = decode_line(line)
  constants: list[str] = []

  def constant(name: str) -> float:
    constants.append(name)
    return float(name)

  try:
    record = json.loads(text, parse_constant=constant, object_pairs_hook=_unrepeated)
    fields = record.items() if constants and isinstance(record, dict) else ()
    not_finite = next((name for name, value in fields if _holds_non_finite(value)), "line")
    if "\\ud" in text.lower():
      json.dumps(record, ensure_ascii=False).encode("utf-8")
  except DataError:
    raise
  except json.JSONDecodeError as error:
    raise DataError(f"column {error.colno}: broken JSON ({error.msg}); write one JSON object a line") from None
  except UnicodeEncodeError:
    raise DataError("line: holds half of a surrogate pair (\\ud8xx); write the character itself in UTF-8") from None
  except (ValueError, RecursionError) as error:
    raise DataError(f"line: unreadable JSON ({error}); write one flat JSON object a line") from None
  if not isinstance(record, dict):
    raise DataError(f"line: a JSON {type(record).__name__}, not an object; write one JSON object a line")
  if constants:
    raise DataError(f"{not_finite}: {constants[0]} is not JSON; leave the field out when unknown")
  return record


def parse_item(line: bytes) -> Item:
  """An items line (see `to_item`)."""
  return to_item(parse_object(line))


def to_item(record: Mapping[str, Any]) -> Item:
  """The item of a JSON object: `item` (or `id`) and `title` (null when unknown); brand, categories, description, price when known."""
  if "title" not in record:
    raise DataError("title: missing; give it, or null when it is unknown")
  item = Item(
    id=required(record, "item" if "item" in record else "id", as_id),
    title=_optional(record, "title", _as_text, ""),
    brand=_optional(record, "brand", _as_text),
    categories=_optional(record, "categories", _as_texts, ()),
    description=_optional(record, "description", _as_text),
    price=_optional(record, "price", as_number),
  )
  check_item(item)
  return item


def parse_history(line: bytes) -> History:
  """An interactions line: `user`, `items` oldest first, and `timestamps` (Unix seconds) when known."""
  record = parse_object(line)
  history = History(
    user=required(record, "user", as_id),
    items=required(record, "items", _as_ids),
    timestamps=_optional(record, "timestamps", _as_times, ()),
  )
  check_history(history)
  return history


def parse_slate(line: bytes) -> Slate:
  """A slates line: the fields of `Slate`; those with a default may be left out or null."""
  record = parse_object(line)
  slate = Slate(
    user=required(record, "user", as_id),
    history=required(record, "history", _as_ids),
    candidates=required(record, "candidates", _as_ids),
    labels=required(record, "labels", _as_integers),
    upstream_scores=_optional(record, "upstream_scores", _as_numbers),
    propensities=_optional(record, "propensities", _as_numbers),
    weight=_optional(record, "weight", as_number, 1.0),
    timestamp=_optional(record, "timestamp", as_time),
    last_time=_optional(record, "last_time", as_time),
    segment=_optional(record, "segment", _as_text),
  )
  check_slate(slate)
  return slate


# Files.


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
  """(line number from 1, bytes) of a plain or gzip file; a byte-order mark at the start is dropped. Raises DataError."""
  number = 0
  try:
    with gzip.open(path, "rb") if os.fspath(path).endswith(".gz") else open(path, "rb") as file:
      for number, line in enumerate(file, start=1):
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise DataError(f"{path}:{number + 1}: damaged gzip ({error}); make or fetch the file again") from None
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a readable .jsonl or .jsonl.gz file") from None


def read_lines(
  path: Path, parse: Callable[[bytes], Record], *, on_error: OnError = "stop", report: BadLines | None = None
) -> Iterator[tuple[int, Record]]:
  """Streams (line number from 1, record) of a JSONL file.

  A line that `parse` refuses with DataError stops the reading with a BadLineError that names file and line; with
  `on_error="skip"` it is left out and noted in `report`, which must then be given. A file that cannot be read, or a damaged
  gzip, always stops.
  """
  if on_error not in ("stop", "skip"):
    raise ValueError(f"on_error: {on_error!r}; use 'stop' or 'skip'")
  if on_error == "skip" and report is None:
    raise ValueError("report: give a BadLines to collect what on_error='skip' leaves out")
  for number, line in numbered_lines(path):
    if not line.strip():
      continue
    try:
      record = parse(line)
    except DataError as error:
      if report is None or on_error == "stop":
        raise BadLineError(f"{path}:{number}: {error}") from None
      report.add_line(path, number, str(error))
    else:
      yield number, record


def _once(parse: Callable[[bytes], Record], name: str, key: Callable[[Record], str]) -> Callable[[bytes], Record]:
  """`parse` that also refuses a record whose key an earlier accepted line had."""
  seen: set[str] = set()

  def parse_once(line: bytes) -> Record:
    record = parse(line)
    if key(record) in seen:
      raise DataError(f"{name}: {key(record)!r} has a line already; give each {name} one line")
    seen.add(key(record))
    return record

  return parse_once


def _check_known(items: tuple[str, ...], catalogue: Catalogue | None, name: str, *, some: bool = False) -> None:
  """Raises DataError naming the field for an item that the catalogue lacks; with `some` only where it lacks them all."""
  if catalogue is None or (some and any(item in catalogue.rows for item in items)):
    return
  try:
    catalogue.to_rows(items)
  except DataError as error:
    raise DataError(f"{name}: {error}") from None


def _are_known(
  items: tuple[str, ...], catalogue: Catalogue | None, name: str, path: Path, line: int, report: BadLines | None
) -> list[bool]:
  """Whether the catalogue has each item; what it lacks is noted as events that are left out."""
  known = [catalogue is None or item in catalogue.rows for item in items]
  if report is not None:
    for item in itertools.compress(items, map(operator.not_, known)):
      report.add_event(path, line, f"{name}: unknown item {item!r}; add it to the items file")
  return known


def _not_empty(records: tuple[Record, ...], path: Path) -> tuple[Record, ...]:
  if not records:
    raise DataError(f"{path}: holds no usable line; give at least one record")
  return records


def read_items(path: Path, *, on_error: OnError = "stop", report: BadLines | None = None) -> Catalogue:
  """The catalogue of an `items.jsonl[.gz]` file, rows in file order; raises DataError (see `read_lines`)."""
  lines = read_lines(path, _once(parse_item, "item", lambda item: item.id), on_error=on_error, report=report)
  return Catalogue(_not_empty(tuple(item for _, item in lines), path))


def read_interactions(
  path: Path, catalogue: Catalogue | None, *, on_error: OnError = "stop", report: BadLines | None = None
) -> tuple[History, ...]:
  """The histories of an `interactions.jsonl[.gz]` file, one a user; items are looked up when a catalogue is given.

  With `on_error="skip"` an item that the catalogue lacks costs its event alone, and the line only where no other is left.
  """

  def parse(line: bytes) -> History:
    history = parse_history(line)
    _check_known(history.items, catalogue, "items", some=on_error == "skip")
    return history

  histories = []
  for number, history in read_lines(path, _once(parse, "user", lambda history: history.user), on_error=on_error, report=report):
    known = _are_known(history.items, catalogue, "items", path, number, report)
    items = tuple(itertools.compress(history.items, known))
    histories.append(History(history.user, items, tuple(itertools.compress(history.timestamps, known))))
  return _not_empty(tuple(histories), path)


def read_slates(
  path: Path, catalogue: Catalogue | None, *, on_error: OnError = "stop", report: BadLines | None = None
) -> tuple[Slate, ...]:
  """The slates of a `slates.jsonl[.gz]` file, possibly none; items are looked up when a catalogue is given.

  With `on_error="skip"` an item of the history that the catalogue lacks is left out alone, as in `read_interactions`; a candidate never.
  """

  def parse(line: bytes) -> Slate:
    slate = parse_slate(line)
    _check_known(slate.history, catalogue, "history", some=on_error == "skip")
    _check_known(slate.candidates, catalogue, "candidates")
    return slate

  slates = []
  for number, slate in read_lines(path, parse, on_error=on_error, report=report):
    known = _are_known(slate.history, catalogue, "history", path, number, report)
    slates.append(dataclasses.replace(slate, history=tuple(itertools.compress(slate.history, known))))
  return tuple(slates)


def _write_objects(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object a line beside `path` and moves the file there once it is whole."""
  with replacing(path) as part, contextlib.ExitStack() as stack:
    file: BinaryIO | gzip.GzipFile = stack.enter_context(open(part, "wb"))
    if part.suffix == ".gz":  # no name, no time: equal records give equal bytes
      file = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
    for record in objects:
      file.write(json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n")


def _known_fields(record: Item | History | Slate) -> dict[str, Any]:
  """The record's fields in order, those that are None or empty by default left out."""
  values = {field.name: (getattr(record, field.name), field.default) for field in dataclasses.fields(record)}
  return {name: value for name, (value, default) in values.items() if value is not None and not (value == () == default)}


def write_items(path: Path, items: Iterable[Item]) -> None:
  """Writes `items.jsonl[.gz]`; `read_items` gives back equal records."""
  _write_objects(path, ({"item": item.id, **{k: v for k, v in _known_fields(item).items() if k != "id"}} for item in items))


def write_interactions(path: Path, histories: Iterable[History]) -> None:
  """Writes `interactions.jsonl[.gz]`; `read_interactions` gives back equal records."""
  _write_objects(path, map(_known_fields, histories))


def write_slates(path: Path, slates: Iterable[Slate]) -> None:
  """Writes `slates.jsonl[.gz]`; `read_slates` gives back equal records."""
  _write_objects(path, map(_known_fields, slates))
