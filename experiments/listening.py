"""How the server listens before it has loaded anything, and compiles while it answers."""

import socket
import threading
from collections.abc import Callable
from typing import Any

from gr2_jax.errors import UserError

BACKLOG = 16_384  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens; raises UserError where it cannot, before any work is done."""
  try:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)
  except OSError as error:
    raise UserError(
      f"--port: cannot listen at {host}:{port} ({error.strerror}); stop what does, or give another --host or --port"
    ) from None


def run_beside(server: Any, listening: socket.socket, warm_up: Callable[[], None]) -> None:
  """Runs a uvicorn server with `warm_up` in a thread beside it; where that fails the server stops, and what it raised is raised here.

  `warm_up` raises InterruptedError, soon after `server.should_exit`, when it is to be left unfinished.
  """
  failures: list[BaseException] = []

  def work() -> None:
    try:
      warm_up()
    except InterruptedError:
      pass
    except BaseException as error:
      failures.append(error)
      server.should_exit = True

  thread = threading.Thread(target=work, name="compile")
  thread.start()
  try:
    server.run(sockets=[listening])
  finally:
    server.should_exit = True
    thread.join()
  if failures:
    raise failures[0]
