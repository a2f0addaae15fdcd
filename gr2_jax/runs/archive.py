"""ZIP files of JSON, text and arrays, read without trust: nothing is executed or extracted, and what is read has a limit."""

import contextlib
import hashlib
import io
import json
import lzma
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from gr2_jax.errors import UserError
from gr2_jax.files import replacing
from gr2_jax.printable import escape_controls

MANIFEST = "manifest.json"  # lists all other members: name -> {"bytes", "sha256"}
_MOST_MEMBERS = 20_000
_MOST_BYTES = 1 << 30  # unpacked, of all that is read of a file
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, RuntimeError, NotImplementedError)
_AGAIN = "ask for the file again, or make it anew with experiments.share"


class ArchiveError(UserError):
  """A file that cannot be read as one of these; the message names it and says what to do."""


def write_archive(path: str | os.PathLike[str], members: Mapping[str, bytes | pathlib.Path], about: Mapping[str, Any]) -> None:
  """Writes the members (content, or the file that has it), and before them MANIFEST with `about` and their sizes and digests.

  The file appears whole or not at all. Raises ValueError for a name that `read_archive` would refuse, and for a NaN.
  """
  listed = {}
  for name, content in members.items():
    if _is_harmful(name):
      raise ValueError(f"members: {name!r} is no name to find a member by")
    size, digest = (len(content), hashlib.sha256(content).hexdigest()) if isinstance(content, bytes) else _describe_file(content)
    listed[name] = {"bytes": size, "sha256": digest}
  with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    archive.writestr(_entry(MANIFEST), dump_json({**about, "members": listed}))
    for name, content in members.items():
      with archive.open(_entry(name), "w", force_zip64=True) as target:
        if isinstance(content, bytes):
          target.write(content)
        else:
          with content.open("rb") as source:
            while block := source.read(1 << 20):
              target.write(block)


def dump_json(value: Any) -> bytes:
  """A JSON value as a member holds it; raises ValueError for a NaN or an infinity."""
  return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def dump_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Arrays as an `.npz` member, by name."""
  buffer, named = io.BytesIO(), dict[str, Any](arrays)
  np.savez_compressed(buffer, **named)
  return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
  """Of a fixed time, so that the same content gives the same file."""
  entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
  entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
  return entry


def _describe_file(path: pathlib.Path) -> tuple[int, str]:
  with path.open("rb") as file:
    return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _is_harmful(name: str) -> bool:
  """Whether a name would lead elsewhere if somebody extracted it, or does things to a terminal."""
  return name != escape_controls(name) or any(sign in name for sign in "\\:") or any(part in ("", ".", "..") for part in name.split("/"))


class Archive:
  """An open archive; `about` is its manifest. Members are read by name; what differs from the manifest is damage, an ArchiveError."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile) -> None:
    self.path, self._archive, self._left = path, archive, _MOST_BYTES
    self._entries = {entry.filename: entry for entry in archive.infolist()}
    if len(self._entries) < len(archive.infolist()) or len(self._entries) > _MOST_MEMBERS:
      self._refuse(f"holds a member twice, or more than {_MOST_MEMBERS:,} of them")
    if harmful := next(filter(_is_harmful, self._entries), None):
      self._refuse(f"holds {harmful!r}, a name that would climb out of its folder; nothing of it was read", "do not unpack it")
    if MANIFEST not in self._entries:
      self._refuse(f"has no {MANIFEST}, so it is no run file of gr2_jax", "give one that experiments.share made")
    self.about: dict[str, Any] = self.read_json(MANIFEST, listed=False)
    members = self.about.get("members")
    if not isinstance(members, dict) or not all(isinstance(of, dict) and isinstance(of.get("sha256"), str) for of in members.values()):
      self._refuse(f"has a {MANIFEST} that lists no members, so it is no run file of gr2_jax", "give one that experiments.share made")
    self.names: tuple[str, ...] = tuple(members)

  def read(self, name: str, *, listed: bool = True) -> bytes:
    """A member, compared with the digest under which the manifest lists it."""
    entry = self._entries.get(name)
    if entry is None or (listed and name not in self.names):
      self._refuse(f"lacks {name}")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      self._refuse(f"holds {name} encrypted, or packed by another method than deflate")
    if entry.file_size > self._left:
      self._refuse(f"unpacks to more than {_MOST_BYTES >> 20:,} MiB ({name} alone to {entry.file_size:,} bytes), as no run does")
    self._left -= entry.file_size
    try:
      content = self._archive.read(entry)  # never more than the size in its entry
    except _DAMAGE as error:
      self._refuse(f"is damaged: {name} cannot be unpacked ({error})")
    if listed and hashlib.sha256(content).hexdigest() != self.about["members"][name]["sha256"]:
      self._refuse(f"is damaged: {name} is not what the manifest lists")
    return content

  def read_text(self, name: str) -> str:
    """A member in UTF-8."""
    try:
      return self.read(name).decode()
    except UnicodeDecodeError:
      self._refuse(f"holds {name}, which is no text")

  def read_json(self, name: str, *, listed: bool = True) -> dict[str, Any]:
    """A member that is a JSON object of finite numbers."""
    return self._parse(self.read(name, listed=listed), name)

  def read_json_lines(self, name: str) -> list[dict[str, Any]]:
    """A member of one JSON object a line."""
    return [self._parse(line, name) for line in self.read(name).splitlines()]

  def read_arrays(self, name: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` member: numbers, truth values and text."""
    try:
      with zipfile.ZipFile(io.BytesIO(self.read(name))) as arrays:
        return {entry.filename.removesuffix(".npy"): self._read_array(arrays, entry) for entry in arrays.infolist()}
    except (*_DAMAGE, ValueError) as error:
      self._refuse(f"is damaged: {name} holds no arrays of numbers or text ({error})")

  def _read_array(self, arrays: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header promises no more than the member has; `np.load` would make room for whatever it promises."""
    if entry.file_size > self._left:
      raise ValueError(f"{entry.filename} unpacks to {entry.file_size:,} bytes")
    self._left -= entry.file_size
    with arrays.open(entry) as file:
      read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
      shape, by_columns, dtype = read_header.get(np.lib.format.read_magic(file), np.lib.format.read_array_header_2_0)(file)
      content = file.read()
    if dtype.kind not in "biufU" or math.prod(shape) * dtype.itemsize != len(content):
      raise ValueError(f"{entry.filename} is {dtype} of {shape} in {len(content):,} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")

  def _parse(self, content: bytes, name: str) -> dict[str, Any]:
    try:
      value = json.loads(content, parse_constant=_refuse_constant, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
      self._refuse(f"is damaged: {name} is no JSON of finite numbers ({error})")
    if not isinstance(value, dict):
      self._refuse(f"is damaged: {name} holds no JSON object")
    return value

  def _refuse(self, problem: str, remedy: str = _AGAIN) -> NoReturn:
    raise ArchiveError(f"{self.path} {problem}; {remedy}") from None


def _refuse_constant(text: str) -> NoReturn:
  raise ValueError(f"{text} is no number")


def _parse_finite(text: str) -> float:
  if not math.isfinite(value := float(text)):
    raise ValueError(f"{text[:20]} is no finite number")
  return value


@contextlib.contextmanager
def read_archive(path: str | os.PathLike[str]) -> Iterator[Archive]:
  """Opens what `write_archive` wrote; raises ArchiveError for anything else: foreign, cut short, damaged or harmful."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise ArchiveError(f"{path}: there is no such file; give one that experiments.share made")
  with path.open("rb") as file:
    begins = file.read(4)
  try:
    archive = zipfile.ZipFile(path)
  except (*_DAMAGE, ValueError, OSError) as error:
    if begins == b"PK\x03\x04":
      raise ArchiveError(f"{path} is cut short ({error}); copy it again, and compare the sizes") from None
    raise ArchiveError(f"{path} is no run file of gr2_jax: it is no ZIP; give one that experiments.share made") from None
  with archive:
    yield Archive(path, archive)
