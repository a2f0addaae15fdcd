"""Re-ranking a file: a line for a line, bad ones named, and the same bytes however often the program was killed."""

import json

import pytest

from gr2_jax.runs.run import RunError
from gr2_jax.serving.ranked_file import rank_lines, rerank_file
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.progress import Progress

SETTINGS = {"mode": "score", "input": "abc"}
LINES = [
  *(
    json.dumps({"user": f"u{n}", "history": [f"i{n}"], "candidates": [f"i{(n + k) % 40}" for k in (1, 9, 5)], "labels": [0, 1, 0]})
    for n in range(9)
  ),
  "",
  "not json",
  json.dumps({"id": "empty", "history": [], "candidates": []}),
  json.dumps({"id": 7, "history": [], "candidates": ["i1", "i1"]}),
  json.dumps({"id": "unknown", "user": "u", "history": [], "candidates": ["i1", "i99"]}),
  json.dumps({"id": "cold", "history": [], "candidates": ["i1", {"item": "i99", "title": "rose"}]}),
  json.dumps({"id": "mode", "history": [], "candidates": ["i1"], "mode": "guess"}),
  json.dumps({"id": {"no": "id"}, "history": [], "candidates": ["i1", "i2"]}),
  json.dumps({"id": "no history", "history": [], "candidates": ["i2", "i3"]}),
]
KINDS = (
  [None] * 9
  + ["broken_json"] * 2
  + ["no_candidates", "repeated_candidate", "unknown_item", "unknown_item", "unknown_mode", "bad_request", None]
)


@pytest.fixture(scope="module")
def reranker(make_reranker):
  return make_reranker(modes=("score",), mode="score", batch_size=4)


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "slates.jsonl"
  path.write_text("\n".join(LINES) + "\n")
  return path


def rank(reranker, source, target, settings=SETTINGS, stop=None):
  with stop or StopSignal() as signal:
    rerank_file(reranker, source, target, settings, Progress(), signal)
  return target.read_bytes()


def test_a_line_for_each_line(reranker, source, tmp_path):
  rank(reranker, source, tmp_path / "ranked.jsonl")
  records = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
  assert [record["line"] for record in records] == list(range(1, len(LINES) + 1))
  assert [record.get("error", {}).get("kind") for record in records] == KINDS
  assert [record["id"] for record in records[:9]] == [f"u{n}" for n in range(9)]
  assert [record["id"] for record in records[9:]] == [None, None, "empty", "7", "unknown", "cold", "mode", None, "no history"]
  for line, record in zip(LINES, records, strict=True):
    if "error" not in record:
      asked = json.loads(line)
      expected = reranker.rank(asked["history"], asked["candidates"])
      assert record["order"] == list(expected.order) and record["fallback"] is False
  assert [path.name for path in tmp_path.glob("*.part*")] == []


class StopAfter(StopSignal):
  """A signal that comes after so many batches."""

  def __init__(self, batches):
    super().__init__()
    self.left = batches

  def check(self):
    self.left -= 1
    if not self.left:
      raise Interrupted(15)


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_killed_and_started_again_it_writes_the_same_bytes(reranker, source, tmp_path, torn):
  whole = rank(reranker, source, tmp_path / "whole.jsonl")
  for batches in (1, 2):
    with pytest.raises(Interrupted):
      rank(reranker, source, tmp_path / "cut.jsonl", stop=StopAfter(batches))
    assert not (tmp_path / "cut.jsonl").exists()
    part = tmp_path / "cut.jsonl.part"
    part.write_bytes(part.read_bytes()[: len(part.read_bytes()) - torn])  # killed in the middle of a write
  assert rank(reranker, source, tmp_path / "cut.jsonl") == whole


def test_nothing_is_overwritten_or_mixed(reranker, source, tmp_path):
  with pytest.raises(Interrupted):
    rank(reranker, source, tmp_path / "ranked.jsonl", stop=StopAfter(1))
  with pytest.raises(RunError, match='mode: "score" -> "direct"'):
    rank(reranker, source, tmp_path / "ranked.jsonl", SETTINGS | {"mode": "direct"})
  rank(reranker, source, tmp_path / "ranked.jsonl")
  with pytest.raises(RunError, match=r"ranked\.jsonl"):
    rank(reranker, source, tmp_path / "ranked.jsonl")


def test_slates_are_ranked_together(reranker, monkeypatch):
  sizes = []
  answer = reranker.engine.answer
  monkeypatch.setattr(reranker.engine, "answer", lambda rows, mode: sizes.append(len(rows)) or answer(rows, mode))
  list(rank_lines(reranker, [(n, line.encode()) for n, line in enumerate(LINES, start=1)]))
  assert sizes == [10]
