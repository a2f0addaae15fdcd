"""The server under load, on the loopback alone: nothing lost, nothing crossed, refusals when too many wait, and a kill under way.

Every request has an id and candidates of its own, on a connection of its own, and all are sent at once. The model is as small as that of
the tests, so that the server is measured. Needs the extra `serving`.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.serving import LENGTHS, make_reranker
from gr2_jax.runs.versions import describe_machine

REQUESTS = 10_000
_PATIENCE = 1800.0  # seconds after which a request that has no answer counts as lost


class Reply(NamedTuple):
  """What became of a request: `answered`, `fallback` (the upstream order, after the timeout), `refused` (429 or 503), `crossed` (the answer
  to another request), or `lost` (the connection ended, or nothing came in time).
  """

  outcome: str
  seconds: float


def run(requests: int = REQUESTS) -> Iterator[dict[str, Any]]:
  """Yields the machine; all requests with room for all; a fifth of them with a short queue, asked again until answered; and a fifth with
  the server killed.
  """
  yield {"machine": describe_machine(("jax", "fastapi", "uvicorn"))}
  with serving(queue=2 * requests) as (port, _):
    yield {"case": "all at once", **_summary(*_timed(port, range(requests)))}
  with serving(queue=64) as (port, _):
    yield {"case": "a queue of 64, asked again until answered", **_until_answered(port, requests // 5)}
  yield {"case": "killed and started again under load", **_killed(requests // 5)}


@contextlib.contextmanager
def serving(queue: int, port: int | None = None) -> Iterator[tuple[int, subprocess.Popen]]:
  """(port, process) of a server of fresh weights that is ready."""
  port = port or _free_port()
  code = f"from experiments.benchmarks.serving_load import serve; serve({port}, {queue})"
  process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cpu"})
  try:
    _wait_until_ready(port, process)
    yield port, process
  finally:
    process.terminate()
    process.wait(60)


def serve(port: int, queue: int) -> None:
  """The server's process: scores slates of ten with the `test` preset, 64 at once."""
  import uvicorn

  from gr2_jax.serving.server import ServerOptions, make_app

  reranker = make_reranker(64, 0, size="test", lengths=LENGTHS[-1:], modes=("score",))
  reranker.warm_up()
  app = make_app(reranker, ServerOptions(queue=queue, timeout=_PATIENCE, body_timeout=_PATIENCE))
  uvicorn.run(app, host="127.0.0.1", port=port, backlog=16_384, log_level="warning", timeout_graceful_shutdown=5)


def make_request(number: int) -> dict[str, Any]:
  """A request that no other one equals."""
  random = np.random.default_rng(number)
  items = [f"item{n:04}" for n in random.permutation(600)[:22]]
  return {"id": f"request-{number}", "history": items[:12], "candidates": items[12:]}


async def ask(port: int, number: int) -> Reply:
  """Sends one request and judges what comes back."""
  asked = make_request(number)
  body = json.dumps(asked).encode()
  head = f"POST /rank HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
  began = time.monotonic()
  try:
    async with asyncio.timeout(_PATIENCE):
      reader, writer = await asyncio.open_connection("127.0.0.1", port)
      writer.write(head.encode() + body)
      reply = await reader.read()
      writer.close()
    outcome = _judge(asked, reply)
  except (OSError, TimeoutError):
    outcome = "lost"
  return Reply(outcome, time.monotonic() - began)


def _judge(asked: dict[str, Any], reply: bytes) -> str:
  head, _, body = reply.partition(b"\r\n\r\n")
  status = head[9:12]
  if status in (b"429", b"503"):
    return "refused"
  if status != b"200":
    return "lost"
  answer = json.loads(body)
  if answer["id"] != asked["id"] or sorted(answer["order"]) != sorted(asked["candidates"]):
    return "crossed"
  return "fallback" if answer["fallback"] else "answered"


def ask_all(port: int, numbers: Sequence[int]) -> list[Reply]:
  """All at once."""

  async def program() -> list[Reply]:
    return await asyncio.gather(*(ask(port, number) for number in numbers))

  return asyncio.run(program())


def _timed(port: int, numbers: Sequence[int]) -> tuple[list[Reply], float]:
  began = time.monotonic()
  return ask_all(port, numbers), time.monotonic() - began


def _summary(replies: list[Reply], seconds: float) -> dict[str, Any]:
  outcomes = Counter(reply.outcome for reply in replies)
  times = [reply.seconds for reply in replies if reply.outcome == "answered"]
  figures = {name: round(float(np.percentile(times, q)), 2) for name, q in (("p50_s", 50), ("p99_s", 99))} if times else {}
  rate = {"requests": len(replies), "seconds": round(seconds, 1), "answered_per_s": round(len(times) / seconds, 1)}
  return rate | figures | {name: outcomes[name] for name in ("answered", "fallback", "refused", "lost", "crossed")}


def _until_answered(port: int, requests: int) -> dict[str, Any]:
  """Refused requests wait a second, as Retry-After asks, and come again."""
  numbers, rounds, refused, replies = list(range(requests)), 0, 0, []
  began = time.monotonic()
  while numbers:
    found = ask_all(port, numbers)
    replies += [reply for reply in found if reply.outcome != "refused"]
    numbers = [number for number, reply in zip(numbers, found, strict=True) if reply.outcome == "refused"]
    refused, rounds = refused + len(numbers), rounds + 1
    time.sleep(1 if numbers else 0)
  return _summary(replies, time.monotonic() - began) | {"refused": refused, "rounds": rounds}


def _killed(requests: int) -> dict[str, Any]:
  """Kills the server (SIGKILL) once a quarter is answered; another takes its port, and what has no answer is asked again."""
  with serving(queue=2 * requests) as (port, process):

    async def program() -> tuple[list[Reply], float]:
      tasks = [asyncio.create_task(ask(port, number)) for number in range(requests)]
      while sum(task.done() for task in tasks) < requests // 4:
        await asyncio.sleep(0.01)
      process.send_signal(signal.SIGKILL)
      killed = time.monotonic()
      replies = await asyncio.gather(*tasks)
      return replies, time.monotonic() - killed

    before, ended_after = asyncio.run(program())
  again = [number for number, reply in enumerate(before) if reply.outcome != "answered"]
  with serving(queue=2 * requests, port=port) as (port, _):
    after = ask_all(port, again)
  counts = Counter(reply.outcome for reply in before)
  return {
    "requests": requests,
    "answered_before": counts["answered"],
    "ended_by_the_kill": counts["lost"],
    "all_ended_s_after_the_kill": round(ended_after, 2),
    "crossed": counts["crossed"] + sum(reply.outcome == "crossed" for reply in after),
    "answered_after_restart": sum(reply.outcome == "answered" for reply in after),
    "without_an_answer_at_last": sum(reply.outcome != "answered" for reply in after),
  }


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _wait_until_ready(port: int, process: subprocess.Popen) -> None:
  closes = time.monotonic() + 600
  while time.monotonic() < closes:
    if process.poll() is not None:
      raise RuntimeError(f"the server ended with code {process.returncode} before it was ready")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
      return
    time.sleep(0.2)
  raise RuntimeError("the server was not ready within 600 s")
