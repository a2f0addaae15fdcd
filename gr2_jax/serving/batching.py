"""Single requests gathered into batches: a bounded queue before the one thread that keeps the device busy."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

Question = TypeVar("Question")
Reply = TypeVar("Reply")


class Overloaded(Exception):
  """The queue is full; ask again later."""


class Stopped(Exception):
  """The batcher was closed before the question's turn."""


class _Waiting(NamedTuple):
  question: Any
  reply: asyncio.Future[Any]
  since: float  # of time.perf_counter


class Batcher(Generic[Question, Reply]):
  """Answers questions by `answer(batch) -> replies`, called in a thread of its own with whatever has come while it was busy.

  At most `batch_size` questions go into a batch, which waits `max_wait` seconds for more after its first; at most `capacity` wait. Use it
  as an asynchronous context; leaving it lets the batch under way end, and the rest raises Stopped.
  """

  def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Reply]], *, batch_size: int, max_wait: float, capacity: int):
    self._answer, self._batch_size, self._max_wait, self._capacity = answer, batch_size, max_wait, capacity
    self._queue: dict[asyncio.Future[Any], _Waiting] = {}  # by their replies, the first that came first
    self._some_wait = asyncio.Event()
    self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
    self._worker: asyncio.Task[None] | None = None
    self.dropped = 0
    """Questions whose askers had gone before their turn, and that were not answered."""

  async def __aenter__(self) -> "Batcher[Question, Reply]":
    self._worker = asyncio.create_task(self._work())
    return self

  async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if self._worker is not None:
      self._worker.cancel()
      await asyncio.gather(self._worker, return_exceptions=True)
    self._thread.shutdown(wait=True)
    for one in self._queue.values():
      _set(one.reply, error=Stopped())
    self._queue.clear()

  @property
  def waiting(self) -> int:
    """Questions in the queue."""
    return len(self._queue)

  @property
  def alive(self) -> bool:
    """Whether questions are still answered."""
    return self._worker is not None and not self._worker.done()

  async def ask(self, question: Question) -> tuple[Reply, float]:
    """(reply, seconds in the queue). Raises Overloaded at once when the queue is full, Stopped, and what `answer` raises.

    A question whose asker goes (is cancelled, for example by a timeout) leaves the queue, and is counted in `dropped`.
    """
    if not self.alive:
      raise Stopped
    if len(self._queue) >= self._capacity:
      raise Overloaded
    reply = asyncio.get_running_loop().create_future()
    self._queue[reply] = _Waiting(question, reply, time.perf_counter())
    self._some_wait.set()
    try:
      return await reply
    except asyncio.CancelledError:
      if self._queue.pop(reply, None) is not None:
        self.dropped += 1
      raise

  async def _work(self) -> None:
    while True:
      while not self._queue:
        self._some_wait.clear()
        await self._some_wait.wait()
      if len(self._queue) < self._batch_size:
        await asyncio.sleep(self._max_wait)
      batch: list[_Waiting] = []
      while self._queue and len(batch) < self._batch_size:
        first = self._queue.pop(next(iter(self._queue)))
        if first.reply.done():  # cancelled, and its asker has not woken yet
          self.dropped += 1
        else:
          batch.append(first)
      if batch:
        await self._answer_batch(batch)

  async def _answer_batch(self, batch: Sequence[_Waiting]) -> None:
    began = time.perf_counter()
    work = asyncio.get_running_loop().run_in_executor(self._thread, self._answer, [one.question for one in batch])
    try:
      await asyncio.wait([work])
    finally:  # also while closing: those whose batch is under way still get their replies
      await asyncio.wait([work])
      error = work.exception()
      replies = [] if error else work.result()
      if error is None and len(replies) != len(batch):
        error = RuntimeError(f"{len(replies)} replies to {len(batch)} questions")
      for place, one in enumerate(batch):
        _set(one.reply, value=None if error else (replies[place], began - one.since), error=error)


def _set(reply: asyncio.Future[Any], value: Any = None, error: BaseException | None = None) -> None:
  if reply.done():  # its asker has gone
    return
  if error is None:
    reply.set_result(value)
  else:
    reply.set_exception(error)
