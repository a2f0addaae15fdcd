"""How a program ends: what went wrong in one line, and the exit code that `experiments.run` promises."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from logging import LogRecord
from types import TracebackType

from absl import logging

from gr2_jax.errors import UserError
from gr2_jax.printable import escape_lines

_AGAIN = "then give the same command again: what is finished stays"
_REMEDIES = {
  errno.ENOSPC: f"free some space, {_AGAIN}",
  errno.EDQUOT: f"free some space or ask for a larger quota, {_AGAIN}",
  errno.EFBIG: f"raise the limit of a file's size (`ulimit -f`), {_AGAIN}",
  errno.EACCES: "change its permissions, or use another folder",
  errno.EPERM: "change its permissions, or use another folder",
  errno.EROFS: "use another folder",
  errno.EIO: f"look after the disk or the network drive, {_AGAIN}",
  errno.EMFILE: f"raise the limit with `ulimit -n 65536`, {_AGAIN}",
}
# What libraries tell instead of an OSError with a number: most the system's words, NumPy only that bytes are missing.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_SHARED_LIBRARY = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")
_DEBIAN_PACKAGES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6", "libgcc_s.so.1": "libgcc-s1", "libz.so.1": "zlib1g"}


def exit_code_of(program: Callable[[], None], writes: str | os.PathLike[str] | None = None) -> int:
  """Runs a program; returns its exit code and prints what went wrong in one line. `writes`: the file or folder that it writes to."""
  from gr2_jax.training.interrupts import Interrupted  # here, since its package brings JAX, for which --help should not wait

  logging.set_verbosity(logging.WARNING)  # Orbax tells every read and write at INFO
  logging.get_absl_logger().addFilter(_is_news)
  sys.excepthook = _tell_news
  sys.unraisablehook = _tell_unraisable_news
  try:
    program()
  except Interrupted as error:
    print(error, file=sys.stderr)
    return error.exit_code
  except UserError as error:
    return _fail(str(error))
  except Exception as error:
    told = describe_system_error(error, writes)
    if told is None:
      raise
    return _fail(told)
  return 0


def _is_news(record: LogRecord) -> bool:
  """Not so: tracebacks by which Orbax's threads announce an error that it raises right after."""
  return not (record.exc_info and "raised an exception" in record.msg)


def _tell_news(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
  if not _is_echo(error):
    sys.__excepthook__(kind, error, trace)


def _tell_unraisable_news(told: "sys.UnraisableHookArgs") -> None:
  if not _is_echo(told.exc_value):
    sys.__unraisablehook__(told)


def _is_echo(error: BaseException | None) -> bool:
  """Whether TensorStore's threads tell of the other writes once one has failed."""
  return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def describe_system_error(error: BaseException, writes: str | os.PathLike[str] | None = None) -> str | None:
  """What the disk, the permissions or the installation lack, and the remedy; None for an error of any other kind.

  Libraries wrap such errors, so those that led to this one count too. `writes`: the place to name where none of them names one.
  """
  for one in _chain(error):
    if missing := _SHARED_LIBRARY.search(str(one)):
      return _describe_library(missing[1])
    if isinstance(one, ModuleNotFoundError) and one.name and one.name.partition(".")[0] not in ("gr2_jax", "experiments", "configs"):
      return f"the package {one.name} is not installed; run `pip install --editable .` in the folder of gr2_jax again"
  number = next(filter(None, map(_error_number, _chain(error))), None)
  if number is None:
    return None
  names = [one.filename for one in _chain(error) if isinstance(one, OSError) and one.filename]
  place = names[0] if names else writes
  return f"{'' if place is None else f'{os.fsdecode(place)}: '}{os.strerror(number)}; {_REMEDIES[number]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those that led to it."""
  while error is not None:
    yield error
    if isinstance(error, BaseExceptionGroup):
      for part in error.exceptions:
        yield from _chain(part)
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _error_number(error: BaseException) -> int | None:
  """Which of the known system errors this one is, or tells of."""
  text = str(error)
  if isinstance(error, OSError) and error.errno is not None:
    found: int | None = error.errno
  elif _SHORT_WRITE.search(text):
    found = errno.ENOSPC
  else:
    found = next((number for number in _REMEDIES if os.strerror(number) in text), None)
  return found if found in _REMEDIES else None


def _describe_library(name: str) -> str:
  package = _DEBIAN_PACKAGES.get(name)
  install = f"`apt-get install {package}` on Debian and Ubuntu" if package else "install the system's package that has it"
  return f"the system library {name} is missing: {install}"


def _fail(message: str) -> int:
  print(f"ERROR: {escape_lines(message)}", file=sys.stderr)
  return 1
