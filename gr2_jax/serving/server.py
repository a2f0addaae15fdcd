"""The re-ranker over HTTP: `/rank`, `/events`, `/health` and `/metrics`, with limits on all that a client can make large or slow.

Needs the extra `serving` (FastAPI, uvicorn, prometheus_client). A request is answered or refused: in time by the policy, after the timeout
by the upstream order, with 429 when too many wait, with 503 while stopping.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gr2_jax.compression.rules import VARIANTS
from gr2_jax.data.schema import TIME_LIMIT
from gr2_jax.serving.batching import Batcher, Overloaded, Stopped
from gr2_jax.serving.cold_start import GUESSES
from gr2_jax.serving.request import KINDS, MODES, SLATE_FIELDS, Ranking, RequestError, item_id, read_events, read_request, upstream_ranking
from gr2_jax.serving.reranker import Prepared, Reranker

_FAILURES = ("not_found", "not_allowed", "too_slow", "too_large", "overloaded", "disconnected", "warming", "stopping")


@dataclasses.dataclass(frozen=True)
class ServerOptions:
  """`queue` requests wait at most; a batch waits `max_wait` seconds for more requests; after `timeout` seconds the upstream order is given.

  A body has at most `max_body` bytes and must be here within `body_timeout` seconds.
  """

  queue: int = 1024
  max_wait: float = 0.005
  timeout: float = 10.0
  max_body: int = 256 * 1024
  body_timeout: float = 5.0


def _optional(*types: str, **keywords: Any) -> dict[str, Any]:
  return {"type": [*types, "null"], **keywords}


_ID = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}]}
_ITEM = {
  "type": "object",
  "description": "an item with its text, as in an items file; needed where the catalogue lacks it",
  "properties": {
    "item": _ID,
    **{name: _optional("string") for name in ("title", "brand", "description")},
    "categories": _optional("array", items={"type": "string"}),
    "price": _optional("number", minimum=0),
  },
  "required": ["item"],
  "additionalProperties": False,
}
# What `serving.request.read_request` takes, which alone decides.
_REQUEST = {
  "type": "object",
  "properties": {
    "id": {"anyOf": [*_ID["anyOf"], {"type": "null"}], "description": "comes back with the answer"},
    "history": {"type": "array", "items": {"anyOf": [*_ID["anyOf"], _ITEM]}, "description": "past items, oldest first"},
    "candidates": {"type": "array", "items": {"anyOf": [*_ID["anyOf"], _ITEM]}, "minItems": 1, "description": "in the upstream order"},
    "timestamp": _optional("integer", minimum=0, exclusiveMaximum=TIME_LIMIT, description="Unix seconds"),
    "mode": {"enum": [*MODES, None]},
    "presentations": _optional("integer", minimum=1),
    "upstream_scores": _optional("array", items={"type": "number"}, description="one for each candidate; scored policies read it"),
    "last_time": _optional(
      "integer", minimum=0, exclusiveMaximum=TIME_LIMIT, description="Unix seconds of the history's last item; scored policies read it"
    ),
    **{name: {"description": "of a slates file; not read"} for name in SLATE_FIELDS},
  },
  "required": ["history", "candidates"],
  "additionalProperties": False,
}

_EVENT = {"user": "u1", "item": "item0003", "timestamp": 1_700_000_000}


class RankingBody(BaseModel):
  """See `serving.request.Ranking`."""

  id: str | None
  order: list[str]
  scores: list[float]
  reasoning: str | None
  timings: dict[str, float] = Field(description="milliseconds")
  fallback: bool = Field(description="the upstream order was given")
  reason: str | None
  history_tokens: int
  dropped_history: int
  compressor: Literal[VARIANTS] | None  # type: ignore[valid-type]
  unknown_history: int
  assigned: list[str]
  guessed: dict[str, Literal[GUESSES]]  # type: ignore[valid-type]


class EventsBody(BaseModel):
  """How many events are counted from now on."""

  added: int


class ErrorDetail(BaseModel):
  """What was wrong, in one word and in one sentence."""

  kind: Literal[(*KINDS, *_FAILURES)]  # type: ignore[valid-type]
  message: str


class ErrorBody(BaseModel):
  """An answer that is no ranking."""

  error: ErrorDetail


class HealthBody(BaseModel):
  """Whether requests are answered."""

  status: Literal["ok", "warming", "stopping"]
  waiting: int


class _Refused(HTTPException):
  """A refusal of one of `_FAILURES`."""

  def __init__(self, status: int, kind: str, message: str):
    super().__init__(status, message)
    self.kind = kind


class _Metrics:
  """What `/metrics` shows."""

  def __init__(self, reranker: Reranker, batcher: Batcher[Prepared, Ranking]):
    self.registry = CollectorRegistry()
    register = {"registry": self.registry}
    self.requests = Counter("gr2_requests", "Requests for a ranking by the status of their answer", ["status"], **register)
    self.fallbacks = Counter("gr2_fallbacks", "Upstream orders given, by reason", ["reason"], **register)
    self.seconds = Histogram("gr2_request_seconds", "From a request's arrival to its answer", **register)
    self.queue_seconds = Histogram("gr2_queue_seconds", "In the queue", **register)
    self.events = Counter("gr2_events", "Events added to the counts", **register)
    sizes = [2**n for n in range(8)]
    self.batch_size = Histogram("gr2_batch_size", "Requests answered together", buckets=sizes, **register)
    Gauge("gr2_waiting", "Requests in the queue", **register).set_function(lambda: batcher.waiting)
    dropped = "Requests that left the queue before the model saw them, since their time was over or their client had gone"
    Gauge("gr2_dropped", dropped, **register).set_function(lambda: batcher.dropped)
    Gauge("gr2_slate_hits", "Slates found on the device", **register).set_function(lambda: reranker.engine.index.hits)
    Gauge("gr2_slate_misses", "Slates computed", **register).set_function(lambda: reranker.engine.index.misses)
    if (compressor := reranker.compressor) is not None:
      Gauge("gr2_history_hits", "Compressed histories remembered", **register).set_function(lambda: compressor.reuse[0])
      Gauge("gr2_history_misses", "Histories of known items compressed", **register).set_function(lambda: compressor.reuse[1])


class _LimitBody:
  """ASGI middleware: a body that is too large or too slow ends the request, however it is sent."""

  def __init__(self, app: ASGIApp, options: ServerOptions):
    self.app, self.options = app, options

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    size, whole, closes = 0, False, time.monotonic() + self.options.body_timeout

    async def limited() -> Message:
      nonlocal size, whole
      if whole:  # what comes now is the end of the connection
        return await receive()
      try:
        message = await asyncio.wait_for(receive(), max(closes - time.monotonic(), 0.001))
      except TimeoutError:
        raise _Refused(408, "too_slow", f"the body did not come within {self.options.body_timeout:g} s") from None
      size += len(message.get("body", b""))
      if size > self.options.max_body:
        raise _Refused(413, "too_large", f"the body has more than {self.options.max_body} bytes; send fewer or shorter items")
      whole = not message.get("more_body", False)
      return message

    await self.app(scope, limited, send)


def make_app(reranker: Reranker, options: ServerOptions = ServerOptions()) -> FastAPI:
  """The application. While the re-ranker is not ready (see `Reranker.warm_up`) requests are refused with 503, and so is `/health`."""
  batcher: Batcher[Prepared, Ranking] = Batcher(
    lambda batch: _rank(reranker, metrics, batch),
    batch_size=reranker.options.batch_size,
    max_wait=options.max_wait,
    capacity=options.queue,
  )
  metrics = _Metrics(reranker, batcher)

  @asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with batcher:
      yield

  app = FastAPI(title="gr2_jax re-ranker", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
  app.add_middleware(_LimitBody, options=options)
  _add_error_handlers(app, metrics)
  refusals = {status: {"model": ErrorBody} for status in (400, 408, 413, 422, 429, 503)}

  body = {"required": True, "content": {"application/json": {"schema": _REQUEST}}}

  def status() -> Literal["ok", "warming", "stopping"]:
    if not batcher.alive:
      return "stopping"
    return "ok" if reranker.is_ready else "warming"

  @app.post("/rank", responses=refusals, openapi_extra={"requestBody": body})
  async def rank(http: HttpRequest) -> RankingBody:
    """Ranks the candidates for the user with this history; always all of them."""
    began = time.perf_counter()
    if status() == "warming":
      raise _Refused(503, "warming", "the first programs are being compiled; ask another server, or this one again later")
    queue_ms = 0.0
    try:
      request = read_request(await http.body())
      if batcher.waiting >= options.queue:
        raise Overloaded
      async with asyncio.timeout(options.timeout):
        prepared = await run_in_threadpool(reranker.prepare, request)
        ranking, queue_s = await _unless_gone(http, batcher.ask(prepared))
        metrics.queue_seconds.observe(queue_s)
        queue_ms = 1000 * queue_s
    except TimeoutError:
      ranking = upstream_ranking(tuple(map(item_id, request.candidates)), "timeout")
    except Overloaded:
      raise _Refused(429, "overloaded", "too many requests wait; ask again later") from None
    except ClientDisconnect:  # nobody reads this
      raise _Refused(499, "disconnected", "the client has gone") from None
    except (Stopped, asyncio.CancelledError):  # cancelled: what is under way when the time for an orderly stop is over
      raise _Refused(503, "stopping", "stopping; ask another server") from None
    if ranking.fallback:
      metrics.fallbacks.labels(ranking.reason).inc()
    seconds = time.perf_counter() - began
    metrics.requests.labels("200").inc()
    metrics.seconds.observe(seconds)
    fields = dataclasses.asdict(ranking)
    fields["timings"] |= {"queue_ms": round(queue_ms, 3), "total_ms": round(1000 * seconds, 3)}
    return RankingBody(id=request.id, **fields)

  lines = {"required": True, "content": {"text/plain": {"schema": {"type": "string"}, "example": json.dumps(_EVENT)}}}

  @app.post("/events", responses={s: refusals[s] for s in (400, 408, 413, 422)}, openapi_extra={"requestBody": lines})
  async def events(http: HttpRequest) -> EventsBody:
    """Counts interactions that came after the run was made, a JSON object a line with user, item and timestamp: all of them or none."""
    try:
      body = await http.body()
    except ClientDisconnect:
      raise _Refused(499, "disconnected", "the client has gone") from None
    added = await run_in_threadpool(lambda: reranker.add_events(read_events(body)))
    metrics.events.inc(added)
    return EventsBody(added=added)

  @app.get("/health", responses={503: {"model": HealthBody}})
  async def health(response: Response) -> HealthBody:
    """Whether requests are answered, and how many wait; 503 while they are not, also while the first programs are compiled."""
    response.status_code = 200 if status() == "ok" else 503
    return HealthBody(status=status(), waiting=batcher.waiting)

  @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
  async def show_metrics() -> Response:
    """Counts and times in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

  return app


def _rank(reranker: Reranker, metrics: _Metrics, batch: Sequence[Prepared]) -> list[Ranking]:
  metrics.batch_size.observe(len(batch))
  return reranker.rank_prepared(batch)


async def _unless_gone(http: HttpRequest, answer: Coroutine[Any, Any, tuple[Ranking, float]]) -> tuple[Ranking, float]:
  """The answer; raises ClientDisconnect, and cancels it, where the client goes before it comes."""
  answering, going = asyncio.create_task(answer), asyncio.create_task(_until_gone(http))
  try:
    await asyncio.wait((answering, going), return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
      raise ClientDisconnect
    return answering.result()
  finally:
    answering.cancel()
    going.cancel()


async def _until_gone(http: HttpRequest) -> None:
  while (await http.receive())["type"] != "http.disconnect":
    pass


_KIND_OF_STATUS = {404: "not_found", 405: "not_allowed"}  # of those that the framework refuses
_RETRY_AFTER = {"overloaded": "1", "warming": "5"}  # seconds


def _add_error_handlers(app: FastAPI, metrics: _Metrics) -> None:
  """Every refusal has the shape of `ErrorBody`."""

  def refuse(http: HttpRequest, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    if http.url.path == "/rank":
      metrics.requests.labels(str(status)).inc()
    text = message.encode("utf-8", "replace").decode("utf-8")  # a client's half surrogates stand in names of fields
    return JSONResponse({"error": {"kind": kind, "message": text}}, status, headers)

  async def of_status(http: HttpRequest, error: HTTPException) -> JSONResponse:
    kind = error.kind if isinstance(error, _Refused) else _KIND_OF_STATUS.get(error.status_code, "bad_request")
    headers = {"Retry-After": _RETRY_AFTER[kind]} if kind in _RETRY_AFTER else error.headers
    return refuse(http, error.status_code, kind, str(error.detail), headers)

  async def of_request(http: HttpRequest, error: RequestError) -> JSONResponse:
    return refuse(http, 400 if error.kind == "broken_json" else 422, error.kind, str(error))

  app.add_exception_handler(HTTPException, of_status)
  app.add_exception_handler(RequestError, of_request)
