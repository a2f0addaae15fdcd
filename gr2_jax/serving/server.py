"""The re-ranker over HTTP: `/rank`, `/health` and `/metrics`, with limits on all that a client can make large or slow.

Needs the extra `serving` (FastAPI, uvicorn, prometheus_client). A request is answered or refused: in time by the policy, after the timeout
by the upstream order, with 429 when too many wait, with 503 while stopping.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gr2_jax.compression.rules import VARIANTS
from gr2_jax.data.jsonl import INTEGER_LIMIT
from gr2_jax.data.schema import TIME_LIMIT, Item
from gr2_jax.serving.batching import Batcher, Overloaded, Stopped
from gr2_jax.serving.cold_start import GUESSES
from gr2_jax.serving.request import KINDS, MODES, Ranking, Request, RequestError, item_id, upstream_ranking
from gr2_jax.serving.reranker import Prepared, Reranker

_Id = Annotated[StrictStr, Field(min_length=1, max_length=256)] | Annotated[StrictInt, Field(gt=-INTEGER_LIMIT, lt=INTEGER_LIMIT)]
_Text = Annotated[StrictStr, Field(max_length=2000)]
_FAILURES = ("not_found", "not_allowed", "broken_json", "too_slow", "too_large", "overloaded", "stopping")


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


class ItemBody(BaseModel):
  """An item with its text, as in an items file; needed where the catalogue lacks it."""

  model_config = ConfigDict(extra="forbid")
  item: _Id
  title: _Text | None = None
  brand: _Text | None = None
  categories: Annotated[list[_Text], Field(max_length=32)] | None = None
  description: _Text | None = None

  def to_item(self) -> Item:
    """The record."""
    return Item(str(self.item), self.title or "", self.brand, tuple(self.categories or ()), self.description)


class RankBody(BaseModel):
  """A user's past items, oldest first, and the candidates in the upstream order."""

  model_config = ConfigDict(extra="forbid")
  id: _Id | None = Field(None, description="comes back with the answer")
  history: Annotated[list[_Id | ItemBody], Field(max_length=10_000)]
  candidates: Annotated[list[_Id | ItemBody], Field(min_length=1, max_length=10_000)]
  timestamp: Annotated[StrictInt, Field(ge=0, lt=TIME_LIMIT)] | None = Field(None, description="Unix seconds")
  mode: Literal[MODES] | None = None  # type: ignore[valid-type]
  presentations: Annotated[StrictInt, Field(ge=1, le=64)] | None = None

  def to_request(self) -> Request:
    """The request; integers become strings."""
    given = self.model_dump(include={"timestamp", "mode", "presentations"})
    return Request(_to_items(self.history), _to_items(self.candidates), id=None if self.id is None else str(self.id), **given)


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


class ErrorDetail(BaseModel):
  """What was wrong, in one word and in one sentence."""

  kind: Literal[(*KINDS, *_FAILURES)]  # type: ignore[valid-type]
  message: str


class ErrorBody(BaseModel):
  """An answer that is no ranking."""

  error: ErrorDetail


class HealthBody(BaseModel):
  """Whether requests are answered."""

  status: Literal["ok", "stopping"]
  waiting: int


class _Metrics:
  """What `/metrics` shows."""

  def __init__(self, reranker: Reranker, waiting: Callable[[], int]):
    self.registry = CollectorRegistry()
    register = {"registry": self.registry}
    self.requests = Counter("gr2_requests", "Requests for a ranking by the status of their answer", ["status"], **register)
    self.fallbacks = Counter("gr2_fallbacks", "Upstream orders given, by reason", ["reason"], **register)
    self.seconds = Histogram("gr2_request_seconds", "From a request's arrival to its answer", **register)
    self.queue_seconds = Histogram("gr2_queue_seconds", "In the queue", **register)
    sizes = [2**n for n in range(8)]
    self.batch_size = Histogram("gr2_batch_size", "Requests answered together", buckets=sizes, **register)
    Gauge("gr2_waiting", "Requests in the queue", **register).set_function(waiting)
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
        raise HTTPException(408, f"the body did not come within {self.options.body_timeout:g} s") from None
      size += len(message.get("body", b""))
      if size > self.options.max_body:
        raise HTTPException(413, f"the body has more than {self.options.max_body} bytes; send fewer or shorter items")
      whole = not message.get("more_body", False)
      return message

    await self.app(scope, limited, send)


def make_app(reranker: Reranker, options: ServerOptions = ServerOptions()) -> FastAPI:
  """The application; warm the re-ranker up before it serves, or the first requests of every shape wait for the compiler."""
  batcher: Batcher[Prepared, Ranking] = Batcher(
    lambda batch: _rank(reranker, metrics, batch),
    batch_size=reranker.options.batch_size,
    max_wait=options.max_wait,
    capacity=options.queue,
  )
  metrics = _Metrics(reranker, lambda: batcher.waiting)

  @asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with batcher:
      yield

  app = FastAPI(title="gr2_jax re-ranker", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
  app.add_middleware(_LimitBody, options=options)
  _add_error_handlers(app, metrics)
  refusals = {status: {"model": ErrorBody} for status in (400, 408, 413, 422, 429, 503)}

  @app.post("/rank", responses=refusals)
  async def rank(body: RankBody) -> RankingBody:
    """Ranks the candidates for the user with this history; always all of them."""
    began = time.perf_counter()
    request = body.to_request()
    queue_ms = 0.0
    if batcher.waiting >= options.queue:
      raise HTTPException(429, "too many requests wait; ask again later")
    try:
      async with asyncio.timeout(options.timeout):
        prepared = await run_in_threadpool(reranker.prepare, request)
        ranking, queue_s = await batcher.ask(prepared)
        metrics.queue_seconds.observe(queue_s)
        queue_ms = 1000 * queue_s
    except TimeoutError:
      ranking = upstream_ranking(tuple(map(item_id, request.candidates)), "timeout")
    except Overloaded:
      raise HTTPException(429, "too many requests wait; ask again later") from None
    except (Stopped, asyncio.CancelledError):  # cancelled: what is under way when the time for an orderly stop is over
      raise HTTPException(503, "stopping; ask another server") from None
    if ranking.fallback:
      metrics.fallbacks.labels(ranking.reason).inc()
    seconds = time.perf_counter() - began
    metrics.requests.labels("200").inc()
    metrics.seconds.observe(seconds)
    fields = dataclasses.asdict(ranking)
    fields["timings"] |= {"queue_ms": round(queue_ms, 3), "total_ms": round(1000 * seconds, 3)}
    return RankingBody(id=request.id, **fields)

  @app.get("/health", responses={503: {"model": HealthBody}})
  async def health(response: Response) -> HealthBody:
    """Whether requests are answered, and how many wait."""
    response.status_code = 200 if batcher.alive else 503
    return HealthBody(status="ok" if batcher.alive else "stopping", waiting=batcher.waiting)

  @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
  async def show_metrics() -> Response:
    """Counts and times in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

  return app


def _rank(reranker: Reranker, metrics: _Metrics, batch: Sequence[Prepared]) -> list[Ranking]:
  metrics.batch_size.observe(len(batch))
  return reranker.rank_prepared(batch)


def _to_items(values: list[str | int | ItemBody]) -> tuple[str | Item, ...]:
  return tuple(value.to_item() if isinstance(value, ItemBody) else str(value) for value in values)


_KIND_OF_STATUS = {
  400: "broken_json",
  404: "not_found",
  405: "not_allowed",
  408: "too_slow",
  413: "too_large",
  429: "overloaded",
  503: "stopping",
}


def _add_error_handlers(app: FastAPI, metrics: _Metrics) -> None:
  """Every refusal has the shape of `ErrorBody`."""

  def refuse(http: HttpRequest, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    if http.url.path == "/rank":
      metrics.requests.labels(str(status)).inc()
    text = message.encode("utf-8", "replace").decode("utf-8")  # a client's half surrogates stand in names of fields
    return JSONResponse({"error": {"kind": kind, "message": text}}, status, headers)

  async def of_status(http: HttpRequest, error: HTTPException) -> JSONResponse:
    kind = _KIND_OF_STATUS.get(error.status_code, "bad_request")
    headers = {"Retry-After": "1"} if error.status_code == 429 else error.headers
    return refuse(http, error.status_code, kind, str(error.detail), headers)

  async def of_validation(http: HttpRequest, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
      return refuse(http, 400, "broken_json", f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    where = ".".join(map(str, first["loc"][1:]))
    return refuse(http, 422, "bad_request", f"{where or 'body'}: {first['msg']}")

  async def of_request(http: HttpRequest, error: RequestError) -> JSONResponse:
    return refuse(http, 422, error.kind, str(error))

  app.add_exception_handler(HTTPException, of_status)
  app.add_exception_handler(RequestValidationError, of_validation)
  app.add_exception_handler(RequestError, of_request)
