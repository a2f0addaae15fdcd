"""A request is the same from Python, as a line of a file and as a body: what one takes all take, and what one refuses all refuse alike."""

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient

from gr2_jax.data.schema import Item
from gr2_jax.evidence.growing import Event
from gr2_jax.language.prompts import PromptContext
from gr2_jax.serving.ranked_file import rank_lines
from gr2_jax.serving.request import Request, RequestError, parse_event, parse_request, read_events
from gr2_jax.serving.server import make_app


class Anywhere:
  """Gives every new item the codes 0, 0."""

  def __init__(self):
    self.base = None

  def warm_up(self):
    pass

  def extend(self, items):
    base = self.base
    catalogue = type(base.catalogue)(base.catalogue.items + tuple(items))
    return PromptContext(catalogue, np.concatenate([base.codes, np.zeros((len(items), 2), int)]), base.vocabulary), {}


@pytest.fixture(scope="module")
def reranker(make_reranker):
  reranker = make_reranker(modes=("score",), mode="score", batch_size=1, cold_start=Anywhere())
  reranker.policy._cold_start.base = reranker.policy.context
  reranker.warm_up()
  return reranker


@pytest.fixture(scope="module")
def doors(reranker):
  """Door -> function of a record: ("", order) or (kind, message)."""

  def python(record):
    try:
      return "", list(reranker.rank(**record).order)
    except RequestError as error:
      return error.kind, str(error)

  def answer(found):
    return tuple(found["error"][part] for part in ("kind", "message")) if "error" in found else ("", found["order"])

  with TestClient(make_app(reranker)) as client:
    yield {
      "python": python,
      "line": lambda record: answer(next(rank_lines(reranker, [(1, json.dumps(record).encode())]))),
      "http": lambda record: answer(client.post("/rank", json=record).json()),
    }


def slate(**fields):
  return {"history": ["i7", "i8"], "candidates": ["i3", "i1", "i2"]} | fields


NEW = {"item": "new", "title": "Rose Toner"}
CASES = {
  "plain": (slate(), ""),
  "all fields": (slate(id="r1", timestamp=1_700_000_000, mode="score", presentations=2), ""),
  "null for what is not given": (slate(id=None, timestamp=None, mode=None, presentations=None), ""),
  "integers as ids": (slate(id=7, history=[5, "i7"], candidates=[5, {"item": 5, "title": "Rose"}]), "repeated_candidate"),
  "a line of a slates file": (
    slate(user="u", labels=[0, 1, 0], upstream_scores=[3, 2, 1], propensities=[1, 1, 1], weight=1, segment="a"),
    "",
  ),
  "upstream scores and the last time": (slate(upstream_scores=[0.5, 2, 1], timestamp=1_700_000_000, last_time=1_600_000_000), ""),
  "upstream scores of other candidates": (slate(upstream_scores=[3, 2]), "bad_request"),
  "upstream scores that are no list": (slate(upstream_scores=3), "bad_request"),
  "an upstream score as text": (slate(upstream_scores=[3, "2", 1]), "bad_request"),
  "an upstream score that is not finite": (slate(upstream_scores=[3, 10**400, 1]), "bad_request"),
  "a last time after the request": (slate(timestamp=1_600_000_000, last_time=1_700_000_000), "bad_request"),
  "no history": (slate(history=[]), ""),
  "a time with a fraction of 0": (slate(timestamp=1.7e9), ""),
  "a time with a fraction": (slate(timestamp=1.5), "bad_request"),
  "a time in milliseconds": (slate(timestamp=1_700_000_000_000), "bad_request"),
  "a time before 1970": (slate(timestamp=-1), "bad_request"),
  "a time as text": (slate(timestamp="now"), "bad_request"),
  "a time that is a flag": (slate(timestamp=True), "bad_request"),
  "an item with all its text": (
    slate(candidates=["i3", NEW | {"brand": "Velora", "categories": ["Care"], "description": "x", "price": 9.5}]),
    "",
  ),
  "an item without a title": (slate(candidates=["i3", {"item": "new", "brand": "Velora"}]), ""),
  "an item whose id is an integer": (slate(candidates=["i3", {"item": 99, "title": None}]), ""),
  "an item in the history": (slate(history=[NEW, "i7"]), ""),
  "a long title": (slate(candidates=["i3", {"item": "new", "title": "very " * 1000}]), ""),
  "an item without an id": (slate(candidates=["i3", {"title": "Rose"}]), "bad_request"),
  "an item with an unknown field": (slate(candidates=["i3", NEW | {"colour": "red"}]), "bad_request"),
  "a price below 0": (slate(candidates=["i3", NEW | {"price": -1}]), "bad_request"),
  "a price as text": (slate(candidates=["i3", NEW | {"price": "9.50"}]), "bad_request"),
  "categories that are no list": (slate(candidates=["i3", NEW | {"categories": "Care"}]), "bad_request"),
  "history missing": (slate(history=None), "bad_request"),
  "history that is no list": (slate(history="i7"), "bad_request"),
  "candidates missing": (slate(candidates=None), "bad_request"),
  "no candidates": (slate(candidates=[]), "no_candidates"),
  "an empty id": (slate(candidates=["i3", ""]), "bad_request"),
  "a flag as an item": (slate(candidates=["i3", True]), "bad_request"),
  "a number with a fraction as an item": (slate(candidates=["i3", 1.5]), "bad_request"),
  "null as an item": (slate(candidates=["i3", None]), "bad_request"),
  "a list as an item": (slate(candidates=["i3", ["i1"]]), "bad_request"),
  "an object as id": (slate(id={"no": "id"}), "bad_request"),
  "repeated": (slate(candidates=["i3", "i1", "i3"]), "repeated_candidate"),
  "unknown item": (slate(candidates=["i3", "i99"]), "unknown_item"),
  "unknown past item": (slate(history=["i99", "i7"]), ""),
  "too many candidates": (slate(candidates=[f"i{n}" for n in range(7)]), "too_many"),
  "too many presentations": (slate(presentations=1000), "too_many"),
  "no presentation": (slate(presentations=0), "bad_request"),
  "presentations with a fraction": (slate(presentations=1.5), "bad_request"),
  "a mode that is none": (slate(mode="guess"), "unknown_mode"),
  "a mode that is not served": (slate(mode="reason"), "unknown_mode"),
  "a mode that is no text": (slate(mode=1), "bad_request"),
  "an unknown field": (slate(presentation=3), "bad_request"),
}


@pytest.mark.parametrize("record, kind", CASES.values(), ids=CASES)
def test_all_doors_answer_alike(doors, record, kind):
  answers = {door: ask(record) for door, ask in doors.items()}
  assert answers["python"][0] == kind and len({json.dumps(answer) for answer in answers.values()}) == 1, answers


def test_what_only_python_can_write_is_read_as_what_it_means(reranker):
  expected = reranker.rank(["i7"], ["i3", "i1"], timestamp=1_700_000_000)
  for history, candidates in ((("i7",), ("i3", "i1")), (np.array(["i7"]), np.array(["i3", "i1"]))):
    assert reranker.rank(history, candidates, timestamp=np.int64(1_700_000_000)).order == expected.order
  whole = Request((np.int64(1), 2), (Item("x", "Rose", None, ("Care",), None, 9.5), {"item": 3, "title": None}), id=np.int32(4))
  assert whole == Request(("1", "2"), (Item("x", "Rose", None, ("Care",), None, 9.5), Item("3", "")), id="4")
  scored = Request(("i7",), ("i3", "i1"), upstream_scores=np.float32([0.5, 0.25]), last_time=np.int64(5))
  assert (scored.upstream_scores, scored.last_time) == ((0.5, 0.25), 5)
  for history in ("i7", {"i7"}, 7):
    with pytest.raises(RequestError) as error:
      reranker.rank(history, ["i3", "i1"])
    assert error.value.kind == "bad_request"


def test_events_have_the_types_of_requests():
  expected = Event("7", "i3", 1_700_000_000)
  for user, time in ((7, 1_700_000_000), ("7", 1.7e9), (np.int64(7), np.int64(1_700_000_000))):
    assert parse_event({"user": user, "item": "i3", "timestamp": time}, 1) == expected
  assert read_events(b'{"user": 1}\r\n{"user": 2}\n') == [{"user": 1}, {"user": 2}]
  for record in (("7", "i3", 5), {"user": True, "item": "i3", "timestamp": 5}, {"user": "7", "item": "i3", "timestamp": 1.5}):
    with pytest.raises(RequestError, match="event 4: ") as error:
      parse_event(record, 4)
    assert error.value.kind == "bad_request"


def test_the_user_is_the_id_where_there_is_none():
  assert parse_request(slate(user=7)).id == "7" and parse_request(slate(user="u", id="r")).id == "r"
