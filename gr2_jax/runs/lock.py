"""One process a run directory: a lock that ends with its process, however that ends."""

import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from gr2_jax.runs.run import LOCK, RunError


@contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Holds `directory/lock`, which names this process and its host; missing folders are made.

  The system gives a lock back when its process is gone, so one that a killed process left is simply taken over. Raises RunError where
  another process holds it. A file system that knows no locks holds nobody up.
  """
  path = pathlib.Path(directory) / LOCK
  path.parent.mkdir(parents=True, exist_ok=True)
  file = _take(path)
  try:
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(file)


def _take(path: pathlib.Path) -> int:
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = os.pread(file, 1000, 0).decode(errors="replace") or "another process"
      os.close(file)
      raise RunError(f"{path.parent} is in use by {holder}; wait until it ends, or use another --workdir") from None
    except OSError:
      return file
    if _is_at(path, file):
      return file
    os.close(file)  # its holder has removed the file in between


def _is_at(path: pathlib.Path, file: int) -> bool:
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False
