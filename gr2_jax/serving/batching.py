"""Single requests gathered into batches: a bounded queue before the one thread that keeps the device busy."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Question, Reply = TypeVar("Question"), TypeVar("Reply")


class Overloaded(Exception):
  """The queue is full; ask again later."""


class Stopped(Exception):
  """The batcher was closed before the question's turn."""


class _Waiting(NamedTuple):
  question: object
  reply: asyncio.Future
  since: float


class Batcher(Generic[Question, Reply]):
  """Answers questions by `answer(batch) -> replies`, called in a thread of its own with whatever has come while it was busy.

  At most `batch_size` questions go into a batch, which waits `max_wait` seconds for more after its first; at most `capacity` wait. Use it
  as an asynchronous context; leaving it lets the batch under way end, and the rest raises Stopped.
  """

  def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Reply]], *, batch_size: int, max_wait: float, capacity: int):
    self._answer, self._batch_size, self._max_wait = answer, batch_size, max_wait
    self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(capacity)
    self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
    self._worker: asyncio.Task | None = None

  async def __aenter__(self) -> "Batcher":
    self._worker = asyncio.create_task(self._work())
    return self

  async def __aexit__(self, *_) -> None:
    self._worker.cancel()
    await asyncio.gather(self._worker, return_exceptions=True)
    self._thread.shutdown(wait=True)
    while not self._queue.empty():
      _set(self._queue.get_nowait().reply, error=Stopped())

  @property
  def waiting(self) -> int:
    """Questions in the queue."""
    return self._queue.qsize()

  @property
  def alive(self) -> bool:
    """Whether questions are still answered."""
    return self._worker is not None and not self._worker.done()

  async def ask(self, question: Question) -> tuple[Reply, float]:
    """(reply, seconds in the queue). Raises Overloaded at once when the queue is full, Stopped, and what `answer` raises.

    A question whose asker has gone (cancelled, for example by a timeout) is not answered.
    """
    if not self.alive:
      raise Stopped
    waiting = _Waiting(question, asyncio.get_running_loop().create_future(), time.perf_counter())
    try:
      self._queue.put_nowait(waiting)
    except asyncio.QueueFull:
      raise Overloaded from None
    return await waiting.reply

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      batch = [waiting for waiting in await self._gather() if not waiting.reply.done()]
      if not batch:
        continue
      began = time.perf_counter()
      work = loop.run_in_executor(self._thread, self._answer, [waiting.question for waiting in batch])
      try:
        replies = await asyncio.shield(work)
      except asyncio.CancelledError:  # closing: those whose batch is under way still get their replies
        replies = await work
        self._hand_out(batch, replies, began)
        raise
      except Exception as error:
        for waiting in batch:
          _set(waiting.reply, error=error)
        continue
      self._hand_out(batch, replies, began)

  async def _gather(self) -> list[_Waiting]:
    batch = [await self._queue.get()]
    closes = time.perf_counter() + self._max_wait
    while len(batch) < self._batch_size:
      if self._queue.empty():
        left = closes - time.perf_counter()
        if left <= 0:
          break
        try:
          batch.append(await asyncio.wait_for(self._queue.get(), left))
        except TimeoutError:
          break
      else:
        batch.append(self._queue.get_nowait())
    return batch

  @staticmethod
  def _hand_out(batch: Sequence[_Waiting], replies: Sequence, began: float) -> None:
    for waiting, reply in zip(batch, replies, strict=True):
      _set(waiting.reply, value=(reply, began - waiting.since))


def _set(reply: asyncio.Future, value: object = None, error: Exception | None = None) -> None:
  if reply.done():  # its asker has gone
    return
  if error is None:
    reply.set_result(value)
  else:
    reply.set_exception(error)
