"""The server answers or refuses: rankings with the request's id, errors in one shape, limits, 429, timeouts, and a stop under load."""

import asyncio
import json
import threading
import time

import httpx
import jax
import numpy as np
import pytest
from fastapi.testclient import TestClient

from gr2_jax.serving.batching import Batcher, Overloaded, Stopped
from gr2_jax.serving.request import Request
from gr2_jax.serving.server import ServerOptions, make_app


@pytest.fixture(scope="module")
def reranker(make_reranker):
  reranker = make_reranker(modes=("score",), mode="score", batch_size=2)
  reranker.warm_up()
  return reranker


@pytest.fixture(scope="module")
def client(reranker):
  with TestClient(make_app(reranker, ServerOptions(max_body=4000))) as client:
    yield client


def slate(*numbers, **fields):
  return {"history": ["i7", "i8"], "candidates": [f"i{n}" for n in numbers]} | fields


def test_a_ranking_is_that_of_the_re_ranker_and_carries_the_id(client, reranker):
  expected = reranker.rank(("i7", "i8"), ("i3", "i1", "i2"))  # first, since compiling may take longer than the server's timeout
  answer = client.post("/rank", json=slate(3, 1, 2, id=12)).json()
  assert answer["order"] == list(expected.order)
  assert answer["id"] == "12" and answer["fallback"] is False and answer["reason"] is None
  assert (answer["history_tokens"], answer["dropped_history"], answer["compressor"]) == (4, 0, None)
  assert set(answer["timings"]) == {"prepare_ms", "model_ms", "queue_ms", "total_ms"}


def test_a_delisted_past_item_refuses_no_request(client, reranker):
  expected = reranker.rank(("i7", "delisted"), ("i3", "i1", "i2"))
  response = client.post("/rank", json=slate(3, 1, 2) | {"history": ["i7", "delisted"]})
  answer = response.json()
  assert (response.status_code, answer["unknown_history"], answer["guessed"]) == (200, 1, {}) and answer["order"] == list(expected.order)


BAD = {
  "no JSON": (b'{"history": [', 400, "broken_json"),
  "no UTF-8": (b'{"history": ["\xff"]}', 400, "broken_json"),
  "endless nesting": (b"[" * 3000, 400, "broken_json"),
  "endless number": (b'{"history": [' + b"1" * 3900 + b"]}", 422, "bad_request"),
  "no object": (b"[]", 400, "broken_json"),
  "empty": (b"", 400, "broken_json"),
  "half a surrogate": (b'{"history": ["\\ud800"], "candidates": ["i1"], "\\udfff": 1}', 400, "broken_json"),
  "unknown field": (slate(1, 2, users=1), 422, "bad_request"),
  "no candidates": (slate(), 422, "no_candidates"),
  "a flag as id": (slate(1, 2, id=True), 422, "bad_request"),
  "repeated": (slate(1, 2, 1), 422, "repeated_candidate"),
  "unknown item": (slate(1, 99), 422, "unknown_item"),
  "mode that is not served": (slate(1, 2, mode="reason"), 422, "unknown_mode"),
  "too many candidates": (slate(*range(7)), 422, "too_many"),
  "too large": (slate(1, 2, id="x" * 200) | {"history": ["i1"] * 1000}, 413, "too_large"),
}


@pytest.mark.parametrize("body, status, kind", BAD.values(), ids=BAD)
def test_refusals_have_one_shape(client, body, status, kind):
  content = body if isinstance(body, bytes) else json.dumps(body).encode()
  answer = client.post("/rank", content=content, headers={"content-type": "application/json"})
  assert (answer.status_code, answer.json()["error"]["kind"]) == (status, kind)
  assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"kind", "message"} and answer.json()["error"]["message"]


def test_other_paths_and_methods(client):
  assert client.get("/nothing").json()["error"]["kind"] == "not_found"
  assert client.get("/rank").json()["error"]["kind"] == "not_allowed"


def test_a_policy_that_counts_nothing_takes_no_events(client):
  answer = client.post("/events", content=b'{"user": "u", "item": "i1", "timestamp": 5}\n')
  assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "no_counts")


def test_a_body_without_a_length_is_limited_too(client):
  def parts():
    yield b'{"history": ['
    for _ in range(1000):
      yield b'"i1", '

  assert client.post("/rank", content=parts(), headers={"content-type": "application/json"}).status_code == 413


def test_health_and_metrics(client):
  assert client.post("/rank", json=slate(3, 1, 2)).status_code == 200
  assert client.get("/health").json() == {"status": "ok", "waiting": 0}
  text = client.get("/metrics").text
  assert 'gr2_requests_total{status="200"}' in text and "gr2_batch_size_bucket" in text and "gr2_waiting 0.0" in text


def test_fallbacks_from_numbers_that_are_not_finite_are_counted(client, reranker, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(reranker.engine, "_params", jax.tree.map(lambda x: np.nan * x, reranker.engine._params))
    answer = client.post("/rank", json=slate(3, 1, 2)).json()
  assert answer["fallback"] and answer["order"] == ["i3", "i1", "i2"] and answer["reason"] == "invalid answer: not_finite"
  assert 'gr2_fallbacks_total{reason="invalid answer: not_finite"} 1.0' in client.get("/metrics").text


def test_remembered_histories_are_counted(make_reranker):
  reranker = make_reranker(modes=("score",), compressor={"variant": "rules", "budget": 12})
  for candidates in (("i1", "i2"), ("i3", "i4")):
    reranker.prepare(Request(("i7", "i8"), candidates))
  with TestClient(make_app(reranker)) as client:
    text = client.get("/metrics").text
    assert "gr2_history_hits 1.0" in text and "gr2_history_misses 1.0" in text


def test_the_schema_names_all_answers(client):
  paths = client.get("/openapi.json").json()["paths"]
  assert set(paths) == {"/rank", "/events", "/health", "/metrics"}
  assert set(paths["/rank"]["post"]["responses"]) == {"200", "400", "408", "413", "422", "429", "503"}


class Slow:
  """A re-ranker whose device takes `seconds` a batch, or until it is let go."""

  def __init__(self, reranker, seconds=0.0):
    self.options, self.engine, self.prepare = reranker.options, reranker.engine, reranker.prepare
    self.compressor, self.is_ready = reranker.compressor, True
    self.seconds, self.batches, self._rank, self.go = seconds, [], reranker.rank_prepared, threading.Event()

  def rank_prepared(self, batch):
    self.batches.append(len(batch))
    self.go.wait(self.seconds)
    return self._rank(batch)


def run_against(slow, options, scenario):
  """Runs `scenario(client)` in one event loop with the application."""

  async def program():
    app = make_app(slow, options)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60)
    async with app.router.lifespan_context(app), client:
      return await scenario(client)

  return asyncio.run(program())


def test_many_at_once_are_batched_and_none_is_lost_or_crossed(reranker):
  slow = Slow(reranker, 0.01)
  slates = {f"{n}": [f"i{(n + k) % 40}" for k in (0, 11, 17)] for n in range(120)}

  async def scenario(client):
    ask = lambda id, candidates: client.post("/rank", json={"id": id, "history": ["i1"], "candidates": candidates})
    return await asyncio.gather(*(ask(*pair) for pair in slates.items()))

  answers = [answer.json() for answer in run_against(slow, ServerOptions(timeout=60), scenario)]
  assert [answer["id"] for answer in answers] == list(slates)
  assert all(sorted(answer["order"]) == sorted(slates[answer["id"]]) and not answer["fallback"] for answer in answers)
  assert sum(slow.batches) == 120 and max(slow.batches) == 2 and len(slow.batches) < 80


def test_a_full_queue_refuses_at_once_and_a_timeout_gives_the_upstream_order(reranker):
  slow = Slow(reranker, 30)

  async def scenario(client):
    began = time.monotonic()
    answers = await asyncio.gather(*(client.post("/rank", json=slate(5, n, id=n)) for n in range(6, 26)))
    assert time.monotonic() - began < 20
    slow.go.set()
    text = (await client.get("/metrics")).text
    return answers, text

  answers, text = run_against(slow, ServerOptions(queue=3, timeout=1.0), scenario)
  refused = [answer for answer in answers if answer.status_code == 429]
  assert refused and all(answer.headers["retry-after"] and answer.json()["error"]["kind"] == "overloaded" for answer in refused)
  late = [answer.json() for answer in answers if answer.status_code == 200]
  assert len(late) + len(refused) == 20 and late
  assert all(answer["fallback"] and answer["reason"] == "timeout" and answer["order"] == ["i5", f"i{answer['id']}"] for answer in late)
  assert f'gr2_fallbacks_total{{reason="timeout"}} {len(late)}.0' in text


def test_while_the_first_programs_are_compiled_requests_are_refused(reranker):
  slow = Slow(reranker)
  slow.is_ready = False

  async def scenario(client):
    early = await client.get("/health"), await client.post("/rank", json=slate(1, 2))
    slow.is_ready = True
    return early, (await client.get("/health"), await client.post("/rank", json=slate(1, 2)))

  (health, refused), (ready, answered) = run_against(slow, ServerOptions(), scenario)
  assert (health.status_code, health.json()["status"]) == (503, "warming")
  assert (refused.status_code, refused.json()["error"]["kind"]) == (503, "warming") and int(refused.headers["retry-after"]) > 0
  assert (ready.status_code, ready.json()["status"], answered.status_code) == (200, "ok", 200)


async def metric(client, name):
  line = next(line for line in (await client.get("/metrics")).text.splitlines() if line.startswith(f"{name} "))
  return float(line.split()[1])


def test_requests_whose_time_is_over_never_reach_the_model(reranker):
  slow = Slow(reranker, 30)

  async def scenario(client):
    late = await asyncio.gather(*(client.post("/rank", json=slate(5, n)) for n in range(6, 16)))
    waiting, dropped = await metric(client, "gr2_waiting"), await metric(client, "gr2_dropped")
    slow.go.set()
    assert (await client.post("/rank", json=slate(1, 2))).json()["fallback"] is False
    return late, waiting, dropped

  late, waiting, dropped = run_against(slow, ServerOptions(timeout=1.0), scenario)
  assert all(answer.json()["reason"] == "timeout" for answer in late)
  assert (waiting, dropped) == (0, 10 - slow.batches[0]) and slow.batches[1:] == [1]


def test_requests_whose_client_has_gone_never_reach_the_model(reranker):
  slow = Slow(reranker, 30)

  async def scenario(client):
    answered = [asyncio.create_task(client.post("/rank", json=slate(5, n))) for n in (6, 7)]
    while sum(slow.batches) + await metric(client, "gr2_waiting") < 2:
      await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    gone, sent = asyncio.Event(), []
    messages = [{"type": "http.request", "body": json.dumps(slate(1, 2)).encode(), "more_body": False}]

    async def receive():
      if messages:
        return messages.pop()
      await gone.wait()
      return {"type": "http.disconnect"}

    async def send(message):
      sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rank", "headers": [], "query_string": b"", "http_version": "1.1"}
    scope |= {"scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "", "raw_path": b"/rank"}
    waits = await metric(client, "gr2_waiting")
    asked = asyncio.create_task(client._transport.app(scope, receive, send))
    while await metric(client, "gr2_waiting") == waits:
      await asyncio.sleep(0.01)
    gone.set()
    await asked
    dropped, text = await metric(client, "gr2_dropped"), (await client.get("/metrics")).text
    slow.go.set()
    await asyncio.gather(*answered)
    return dropped, text

  dropped, text = run_against(slow, ServerOptions(), scenario)
  assert dropped == 1 and 'gr2_requests_total{status="499"} 1.0' in text and sum(slow.batches) == 2


def test_what_is_cut_off_by_a_stop_is_refused(reranker):
  slow = Slow(reranker, 30)

  async def scenario(client):
    asked = asyncio.create_task(client.post("/rank", json=slate(1, 2)))
    while not slow.batches:
      await asyncio.sleep(0.01)
    asked.cancel()  # as uvicorn does when its grace is over
    answer = await asked
    slow.go.set()
    return answer

  answer = run_against(slow, ServerOptions(), scenario)
  assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "stopping")


def test_after_closing_the_batch_under_way_is_answered_and_the_rest_refused():
  go, started = threading.Event(), threading.Event()

  def answer(batch):
    started.set()
    go.wait(10)
    return [2 * question for question in batch]

  async def program():
    batcher = Batcher(answer, batch_size=2, max_wait=0.05, capacity=4)
    async with batcher:
      asked = [asyncio.create_task(batcher.ask(question)) for question in (1, 2, 3)]
      await asyncio.to_thread(started.wait, 10)
      gone = asyncio.create_task(batcher.ask(9))
      await asyncio.sleep(0)
      gone.cancel()
      asyncio.get_running_loop().call_later(0.05, go.set)
    assert not batcher.alive
    with pytest.raises(Stopped):
      await batcher.ask(4)
    return await asyncio.gather(*asked, return_exceptions=True)

  first, second, third = asyncio.run(program())
  assert (first[0], second[0]) == (2, 4) and isinstance(third, Stopped)


def test_a_batch_that_fails_fails_alone():
  def answer(batch):
    if 0 in batch:
      raise ZeroDivisionError
    return batch

  async def program():
    async with Batcher(answer, batch_size=1, max_wait=0, capacity=2) as batcher:
      with pytest.raises(ZeroDivisionError):
        await batcher.ask(0)
      waiting = [asyncio.create_task(batcher.ask(n)) for n in (1, 2)]
      await asyncio.sleep(0)
      with pytest.raises(Overloaded):
        await batcher.ask(3)
      return [reply for reply, _ in await asyncio.gather(*waiting)]

  assert asyncio.run(program()) == [1, 2]
