"""Files that appear whole or not at all, whenever the process is killed."""

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What `replacing`, the links of a stage and Orbax write to until it is whole.
_PARTIAL = re.compile(r"\..+\.\d+\.part(\..*)?|\..+\.partial|.+\.orbax-checkpoint-tmp.*")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a hidden path beside `path` to write to; it takes the place of `path` when the body ends without an exception.

  Missing folders are made. The suffix stays, since some writers choose their format by it.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    error.filename = error.filename or str(path)  # a write to an open file knows no name
    raise
  finally:
    partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a hidden folder beside `path`, which is missing or empty; it becomes `path` when the body ends without an exception."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  partial.mkdir()
  try:
    yield partial
    os.replace(partial, path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
  """Raises OSError, with the folder's name, where no file can be written; the folder is made where it is missing."""
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    error.filename = str(folder)
    raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a JSON value, two spaces an indent; raises ValueError for a NaN or an infinity."""
  text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  with replacing(path) as partial:
    partial.write_text(text + "\n", encoding="utf-8")


def is_partial(path: pathlib.Path) -> bool:
  """Whether a file or a checkpoint is still being written, or was when its process was killed."""
  return _PARTIAL.fullmatch(path.name) is not None


def remove_partials(folder: pathlib.Path) -> None:
  """Removes what killed processes left half written in a folder and those below; nobody may be writing there."""
  for path in list(filter(is_partial, folder.rglob("*"))):
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)  # it may have been in a folder that is gone by now
