"""Answers that are dear to compute, by key in one append-only JSONL file, so that a run that was stopped asks only for what is missing."""

import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

from gr2_jax.data.schema import DataError


def content_key(value: Any) -> str:
  """SHA-256 of a JSON value: equal content, equal key, whatever it is called."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class DiskCache:
  """JSON values by key, as lines `{"key", "value"}`; safe to use from several threads of one process.

  A last line without an end, as a kill leaves it, is cut off. Raises DataError, naming file and line, for any other line that is not an
  entry. With `write` False (a process that is not the first of several) nothing is written.
  """

  def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
    self.path = pathlib.Path(path)
    self._lock = threading.Lock()
    self._values: dict[str, Any] = {}
    whole = 0
    if self.path.exists():
      for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
          key, value = self._parse(line, number)
          self._values[key] = value
          whole += len(line)
    self._file = None
    if write:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = self.path.open("ab")
      self._file.truncate(whole)

  def _parse(self, line: bytes, number: int) -> tuple[str, Any]:
    try:
      entry = json.loads(line)
      return entry["key"], entry["value"]
    except (ValueError, KeyError, TypeError):
      raise DataError(f"{self.path}:{number}: not an entry of this cache; remove the file to make it again") from None

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def __getitem__(self, key: str) -> Any:
    return self._values[key]

  def __len__(self) -> int:
    return len(self._values)

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def put(self, key: str, value: Any) -> None:
    """Keeps a value, on disk before this returns."""
    line = json.dumps({"key": key, "value": value}, ensure_ascii=False, separators=(",", ":"))
    with self._lock:
      self._values[key] = value
      if self._file is not None:
        self._file.write(line.encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()

  def close(self) -> None:
    """Closes the file; values can still be read."""
    if self._file is not None:
      self._file.close()
      self._file = None

  def __enter__(self) -> "DiskCache":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
