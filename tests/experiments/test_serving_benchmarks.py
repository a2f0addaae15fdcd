"""The suites of serving: ways to treat a slate agree before they are timed, and a judge of answers that sees a lost and a crossed one."""

import importlib.util
import json

import pytest

from experiments.benchmarks import serving, serving_load


@pytest.mark.slow
def test_whole_and_reused_slates_are_compared_and_timed():
  rerankers = {name: serving.make_reranker(2, cached, size="test", modes=("score",)) for name, cached in (("whole", 0), ("reused", 2))}
  lines = list(serving._measure(rerankers, "score", 2, 1))
  assert [line["slate"] for line in lines] == ["whole", "reused", "reused, first time"]
  assert all(line["ms"] > 0 and line["case"] == "score x2" for line in lines)
  # All users see one slate: it is computed once before the timing, and once for each call that forgets it.
  assert rerankers["reused"].engine.index.misses == 3
  row = rerankers["reused"].prepare(serving.make_requests(1, "score")[0]).rows[0]
  history, slate, whole = serving.LENGTHS
  assert len(row.tokens) - row.shared <= history and row.shared <= slate and len(row.tokens) <= whole


def test_answers_are_judged():
  asked = serving_load.make_request(3)
  right = {"id": "request-3", "order": asked["candidates"][::-1], "fallback": False}

  def judge(status, **changes):
    return serving_load._judge(asked, f"HTTP/1.1 {status} x\r\na: b\r\n\r\n{json.dumps(right | changes)}".encode())

  assert judge(200) == "answered" and judge(200, fallback=True) == "fallback"
  assert judge(200, id="request-4") == judge(200, order=serving_load.make_request(4)["candidates"]) == "crossed"
  assert judge(429) == judge(503) == "refused" and judge(500) == "lost" and serving_load._judge(asked, b"") == "lost"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="uvicorn is not installed; pip install 'gr2_jax[serving]'")
def test_under_load_nothing_is_lost_or_crossed():
  _, at_once, short_queue, killed = serving_load.run(1000)
  for line, requests in ((at_once, 1000), (short_queue, 200)):
    assert line["answered"] == requests and line["lost"] == line["crossed"] == line["fallback"] == 0
  assert killed["answered_before"] + killed["answered_after_restart"] == 200
  assert killed["crossed"] == killed["without_an_answer_at_last"] == 0 and killed["all_ended_s_after_the_kill"] < 30
