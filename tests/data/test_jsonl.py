"""JSONL: exact round trips, every kind of bad line named, nothing lost when writing fails."""

import gzip
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data import jsonl
from gr2_jax.data.jsonl import BadLineError, BadLines, parse_history, parse_item, parse_slate, read_interactions, read_items, read_slates
from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate

CATALOGUE = Catalogue(tuple(Item(name, name) for name in ("a", "b", "c", "7")))
SLATE = {"user": "u", "history": ["a"], "candidates": ["b", "c"], "labels": [0, 1]}


def _write(path, *lines):
  path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
  return path


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)
items = st.builds(
  Item,
  id=ids,
  title=texts,
  brand=st.none() | texts,
  categories=st.lists(texts, max_size=3).map(tuple),
  description=st.none() | texts,
  price=st.none() | st.floats(0, 1e300),
)


@st.composite
def histories(draw):
  taken = draw(st.lists(ids, min_size=1, max_size=5))
  times = sorted(draw(st.lists(st.integers(0, 10**11 - 1), min_size=len(taken), max_size=len(taken))))
  return History(draw(ids), tuple(taken), tuple(times) if draw(st.booleans()) else ())


@st.composite
def slates(draw):
  candidates = draw(st.lists(ids, min_size=2, max_size=5, unique=True))
  size = len(candidates)

  def maybe(element):
    return draw(st.none() | st.lists(element, min_size=size, max_size=size).map(tuple))

  return Slate(
    user=draw(ids),
    history=tuple(draw(st.lists(ids, min_size=1, max_size=4))),
    candidates=tuple(candidates),
    labels=tuple(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size).filter(any))),
    upstream_scores=(scores := maybe(numbers)) and tuple(sorted(scores, reverse=True)),
    propensities=maybe(st.floats(1e-9, 1)),
    weight=draw(st.floats(1e-9, 1e9)),
    timestamp=draw(st.none() | st.integers(0, 10**11 - 1)),
    segment=draw(st.none() | texts),
  )


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_round_trips_are_exact(tmp_path_factory, suffix, data):
  path = tmp_path_factory.mktemp("trip") / f"records{suffix}"
  some_items = data.draw(st.lists(items, min_size=1, max_size=3, unique_by=lambda item: item.id))
  jsonl.write_items(path, some_items)
  assert read_items(path).items == tuple(some_items)
  some_histories = data.draw(st.lists(histories(), min_size=1, max_size=3, unique_by=lambda history: history.user))
  jsonl.write_interactions(path, some_histories)
  assert read_interactions(path, None) == tuple(some_histories)
  some_slates = data.draw(st.lists(slates(), max_size=3))
  jsonl.write_slates(path, some_slates)
  assert read_slates(path, None) == tuple(some_slates)


def test_integer_ids_null_titles_and_unknown_keys(tmp_path):
  path = _write(
    tmp_path / "items.jsonl",
    '{"item": 7, "title": null, "brand": null, "categories": null, "asin": "B0", "stars": {"a": [1.5]}}',
    "",
    '{"id": "x", "title": "ножницы ✂", "price": 3}',
  )
  assert read_items(path).items == (Item("7", ""), Item("x", "ножницы ✂", price=3.0))
  path = _write(tmp_path / "interactions.jsonl", '{"user": 1, "items": [7, 7]}')
  assert read_interactions(path, CATALOGUE) == (History("1", ("7", "7")),)


def test_unknown_fields_are_not_written_and_files_are_what_they_say(tmp_path):
  slate = Slate("u", ("a",), ("b", "c"), (0, 1))
  jsonl.write_slates(tmp_path / "s.jsonl", [slate])
  assert json.loads((tmp_path / "s.jsonl").read_text()) == {**SLATE, "weight": 1.0}
  for name in ("s.jsonl.gz", "t.jsonl.gz"):
    jsonl.write_slates(tmp_path / name, [slate])
  assert gzip.decompress((tmp_path / "s.jsonl.gz").read_bytes()) == (tmp_path / "s.jsonl").read_bytes()
  assert (tmp_path / "s.jsonl.gz").read_bytes() == (tmp_path / "t.jsonl.gz").read_bytes()


def test_byte_order_mark_and_windows_line_ends(tmp_path):
  path = _write(tmp_path / "i.jsonl", b'\xef\xbb\xbf{"user": "u", "items": ["a"]}\r', b'{"user": "v", "items": ["b"]}\r', b"")
  assert [history.user for history in read_interactions(path, CATALOGUE)] == ["u", "v"]


BAD_OBJECTS = [
  (b"{", "column 2: broken JSON"),
  (b"[1]", "line: a JSON list"),
  (b"null", "line: a JSON NoneType"),
  (b'{"user": "\xff"}', "byte 11: not UTF-8"),
  (b'{"user": "u", "x": [{"y": NaN}]}', "x: NaN is not JSON"),
  (b'{"x": -Infinity}', "x: -Infinity is not JSON"),
  (b'{"x": 1, "y": 2, "y": 2}', "y: given twice"),
  (b'{"x": [{"y": 1, "y": 2}]}', "y: given twice"),
  (b'{"x": NaN, "x": 1}', "x: given twice"),
  (b'{"user": "\\ud800"}', "line: holds half of a surrogate"),
  (b"[" * 100_000, "line: unreadable JSON"),
  (b'{"x": ' + b"9" * 5000 + b"}", "line: unreadable JSON"),
]
BAD_ITEMS = [
  (b'{"title": "t"}', "id: missing"),
  (b'{"item": 1}', "title: missing"),
  (b'{"item": "", "title": "t"}', "item: empty id"),
  (b'{"item": 1.5, "title": "t"}', "item: 1.5 is not an id"),
  (b'{"item": true, "title": "t"}', "item: True is not an id"),
  (b'{"item": 1, "title": 5}', "title: 5 is not text"),
  (b'{"item": 1, "title": "t", "categories": "x"}', "categories: 'x' is not a list"),
  (b'{"item": 1, "title": "t", "categories": [["x"]]}', "categories: .* is not text"),
  (b'{"item": 1, "title": "t", "price": "9"}', "price: '9' is not a number"),
  (b'{"item": 1, "title": "t", "price": 1e999}', "price: the number is too large"),
  (b'{"item": 1, "title": "t", "price": ' + b"9" * 400 + b"}", "price: the number is too large"),
  (b'{"item": 1, "title": "t", "price": -2}', "price: -2.0"),
]
BAD_HISTORIES = [
  (b'{"items": ["a"]}', "user: missing"),
  (b'{"user": "u"}', "items: missing"),
  (b'{"user": "u", "items": []}', "items: user 'u' has no interactions"),
  (b'{"user": "u", "items": {"a": 1}}', "items: .* is not a list"),
  (b'{"user": "u", "items": [null]}', "items: None is not an id"),
  (b'{"user": "u", "items": ["z"]}', "items: unknown item 'z'"),
  (b'{"user": "u", "items": ["a"], "timestamps": [1.5]}', "timestamps: 1.5 is no time; write whole Unix seconds"),
  (b'{"user": "u", "items": ["a"], "timestamps": [9223372036854775808]}', "timestamps: .* Unix seconds"),
  (b'{"user": "u", "items": ["a"], "timestamps": [1700000000000]}', "timestamps: 1700000000000 .* divide milliseconds"),
  (b'{"user": "u", "items": ["a"], "timestamps": [-1]}', "timestamps: -1"),
  (b'{"user": "u", "items": ["a"], "timestamps": [1, 2]}', "timestamps: 2 for 1 items"),
  (b'{"user": "u", "items": ["a", "b"], "timestamps": [2, 1]}', "timestamps: they decrease"),
]
BAD_SLATES = [
  (json.dumps({**SLATE, **change}).encode(), message)
  for change, message in [
    ({"history": []}, "history: user 'u' has none"),
    ({"history": ["z"]}, "history: unknown item 'z'"),
    ({"candidates": ["b", "z"]}, "candidates: unknown item 'z'"),
    ({"candidates": ["b"], "labels": [1]}, "candidates: a slate of 1"),
    ({"candidates": ["b", "b"]}, "candidates: 'b' is repeated"),
    ({"labels": [0, 0]}, "labels: all are 0"),
    ({"labels": [-1, 1]}, "labels: .* use 0 none"),
    ({"labels": [0, 3]}, "labels: .* use 0 none"),
    ({"labels": [float("nan"), 1]}, "labels: NaN is not JSON"),
    ({"labels": [0.5, 1]}, "labels: 0.5 is not a 64-bit integer; write whole numbers$"),
    ({"labels": None}, "labels: missing"),
    ({"upstream_scores": [1.0]}, "upstream_scores: 1 for 2"),
    ({"upstream_scores": ["1", 2]}, "upstream_scores: '1' is not a number"),
    ({"upstream_scores": [1, 2]}, "upstream_scores: they rise"),
    ({"propensities": [0, 1]}, "propensities: must lie"),
    ({"weight": 0}, "weight: 0.0 must be"),
    ({"timestamp": "now"}, "timestamp: 'now'"),
    ({"timestamp": 10**11}, "timestamp: 100000000000"),
    ({"segment": 3}, "segment: 3 is not text"),
  ]
]
GOOD_ITEM, GOOD_HISTORY = b'{"item": "a", "title": ""}', b'{"user": "good", "items": ["a"]}'
CASES = [
  *((lambda path, **kw: read_items(path, **kw).items, GOOD_ITEM, *case) for case in BAD_OBJECTS + BAD_ITEMS),
  *((lambda path, **kw: read_interactions(path, CATALOGUE, **kw), GOOD_HISTORY, *case) for case in BAD_HISTORIES),
  *((lambda path, **kw: read_slates(path, CATALOGUE, **kw), json.dumps(SLATE).encode(), *case) for case in BAD_SLATES),
]


@pytest.mark.parametrize(("read", "good", "bad", "message"), CASES)
def test_a_bad_line_stops_or_is_skipped_and_listed(tmp_path, read, good, bad, message):
  path = _write(tmp_path / "file.jsonl", good, bad)
  with pytest.raises(BadLineError, match=rf"file\.jsonl:2: ({message})"):
    read(path)
  report = BadLines()
  assert len(read(path, on_error="skip", report=report)) == 1
  assert (len(report.lines), report.events) == (1, [])
  report.write(tmp_path / "bad.jsonl")
  listed = json.loads((tmp_path / "bad.jsonl").read_text())
  assert listed == {"file": str(path), "line": 2, "left_out": "line", "reason": report.lines[0].reason}


def test_told_to_skip_an_unknown_item_costs_its_event_alone(tmp_path):
  report = BadLines()
  log = _write(tmp_path / "log.jsonl", '{"user": "u", "items": ["y", "a", "z", "b"], "timestamps": [1, 2, 3, 4]}', GOOD_HISTORY)
  assert read_interactions(log, CATALOGUE, on_error="skip", report=report) == (History("u", ("a", "b"), (2, 4)), History("good", ("a",)))
  slates = _write(tmp_path / "slates.jsonl", json.dumps({**SLATE, "history": ["z", "a"]}), json.dumps({**SLATE, "candidates": ["b", "z"]}))
  assert read_slates(slates, CATALOGUE, on_error="skip", report=report) == (Slate("u", ("a",), ("b", "c"), (0, 1)),)
  report.write(tmp_path / "bad.jsonl")
  listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
  assert [(entry["file"], entry["line"], entry["left_out"], entry["reason"].split(";")[0]) for entry in listed] == [
    (str(slates), 2, "line", "candidates: unknown item 'z'"),
    (str(log), 1, "event", "items: unknown item 'y'"),
    (str(log), 1, "event", "items: unknown item 'z'"),
    (str(slates), 1, "event", "history: unknown item 'z'"),
  ]


def test_repeated_items_and_users_are_refused(tmp_path):
  path = _write(tmp_path / "items.jsonl", GOOD_ITEM, GOOD_ITEM)
  with pytest.raises(DataError, match=r"items\.jsonl:2: item: 'a' has a line already"):
    read_items(path)
  path = _write(tmp_path / "log.jsonl", GOOD_HISTORY, '{"user": "x", "items": ["b"]}', GOOD_HISTORY)
  report = BadLines()
  assert [h.user for h in read_interactions(path, CATALOGUE, on_error="skip", report=report)] == ["good", "x"]
  assert [(line.line, line.reason.split(":")[0]) for line in report.lines] == [(3, "user")]


def test_files_that_cannot_be_used(tmp_path):
  with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
    read_items(tmp_path / "none.jsonl")
  with pytest.raises(DataError, match="cannot be read"):
    read_items(tmp_path)
  with pytest.raises(DataError, match="no usable line"):
    read_interactions(_write(tmp_path / "empty.jsonl", b"", b" "), None)
  whole = gzip.compress(GOOD_HISTORY * 3)
  for name, content in (("cut", whole[:-9]), ("plain", GOOD_HISTORY), ("bent", whole[:12] + b"\xff\xff\xff" + whole[15:])):
    (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
    for options in ({}, {"on_error": "skip", "report": BadLines()}):
      with pytest.raises(DataError, match=rf"{name}\.jsonl\.gz:\d+: damaged gzip"):
        read_interactions(tmp_path / f"{name}.jsonl.gz", None, **options)


def test_skipping_needs_a_report_and_a_known_word(tmp_path):
  path = _write(tmp_path / "i.jsonl", GOOD_HISTORY)
  with pytest.raises(ValueError, match="report"):
    read_interactions(path, None, on_error="skip")
  with pytest.raises(ValueError, match="on_error: 'ignore'"):
    read_interactions(path, None, on_error="ignore")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
  path = tmp_path / "deep" / "histories.jsonl"
  jsonl.write_interactions(path, [History("u", ("a",))])
  before = path.read_bytes()

  def broken():
    yield History("v", ("b",))
    raise RuntimeError("lost")

  with pytest.raises(RuntimeError, match="lost"):
    jsonl.write_interactions(path, broken())
  with pytest.raises(ValueError, match="JSON"):
    jsonl.write_items(path, [Item("a", "", price=float("nan"))])
  assert path.read_bytes() == before
  assert [entry.name for entry in path.parent.iterdir()] == ["histories.jsonl"]


@settings(max_examples=200, deadline=None)
@given(
  st.binary(max_size=40)
  | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.dictionaries(st.sampled_from(["user", "items", "item", "title", "timestamps", *SLATE, "weight", "price"]), inner)
    ),
    max_leaves=12,
  ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_gives_a_record_or_a_data_error(line):
  for parse in (parse_item, parse_history, parse_slate):
    try:
      parse(line)
    except DataError as error:
      assert ": " in str(error)


def test_ten_thousand_item_histories_are_fast(tmp_path):
  many = History("u", ("a", "b") * 5_000, tuple(range(10_000)))
  path = tmp_path / "long.jsonl.gz"
  start = time.perf_counter()
  jsonl.write_interactions(path, [many])
  assert read_interactions(path, CATALOGUE) == (many,)
  assert time.perf_counter() - start < 2  # generous: it takes some hundredths of a second
