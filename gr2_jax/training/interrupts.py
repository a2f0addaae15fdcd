"""SIGTERM and SIGINT as a request to save and stop, not as an exception in the middle of a write."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupted(Exception):
  """The program was asked to stop and has saved what it needs to go on; exit with `exit_code` (143 SIGTERM, 130 SIGINT)."""

  def __init__(self, signum: int) -> None:
    super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")
    self.exit_code = 128 + signum


class StopSignal:
  """Context in which the first SIGTERM or SIGINT only sets `requested`; a second SIGINT kills at once.

  Use it in the main thread: Python delivers signals to no other.
  """

  def __init__(self) -> None:
    self.signum: int | None = None
    self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

  @property
  def requested(self) -> bool:
    """Whether a signal has come."""
    return self.signum is not None

  def check(self) -> None:
    """Raises Interrupted when a signal has come; for long work that has nothing to save on the way."""
    if self.signum is not None:
      raise Interrupted(self.signum)

  def __enter__(self) -> "StopSignal":
    self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, signum: int, frame: FrameType | None) -> None:
    self.signum = signum
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print(f"\n{signal.Signals(signum).name}: saving, then stopping; press Ctrl-C to stop at once", file=sys.stderr, flush=True)
