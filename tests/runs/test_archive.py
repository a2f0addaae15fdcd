"""Archives come back as they were written, and whatever else calls itself one is refused in a sentence, without being executed."""

import hashlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from gr2_jax.runs import archive as archive_module
from gr2_jax.runs.archive import MANIFEST, ArchiveError, dump_arrays, dump_json, read_archive, write_archive

ARRAYS = {
  "users": np.array(["a", "ü"]),
  "values": np.arange(6.0).reshape(2, 3),
  "columns": np.asfortranarray(np.eye(2, 3)),
  "one": np.int32(3),
}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.gr2"


def write(path, members, about=None):
  """A ZIP whose manifest lists its members as they are."""
  listed = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in members.items()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
    file.writestr(MANIFEST, json.dumps({"members": listed} | (about or {})))
    for name, content in members.items():
      file.writestr(name, content)


def refusal(path, read):
  with pytest.raises(ArchiveError) as refused, read_archive(path) as archive:
    read(archive)
  told = str(refused.value)
  assert told.startswith(str(path)) and "\n" not in told and "; " in told
  return told


def test_what_is_written_comes_back_and_the_same_content_is_the_same_file(path, tmp_path):
  (tmp_path / "page.md").write_text("ä page")
  members = {"a/b.json": dump_json({"x": [1, 2.5, None]}), "a/b.npz": dump_arrays(ARRAYS), "page.md": tmp_path / "page.md"}
  members["lines.jsonl"] = b'{"step": 1}\n{"step": 2}\n'
  write_archive(path, members, {"format": 1})
  with read_archive(path) as archive:
    assert archive.about["format"] == 1 and set(archive.names) == set(members)
    assert archive.read_json("a/b.json") == {"x": [1, 2.5, None]} and archive.read_text("page.md") == "ä page"
    assert archive.read_json_lines("lines.jsonl") == [{"step": 1}, {"step": 2}]
    read = archive.read_arrays("a/b.npz")
  assert read.keys() == ARRAYS.keys() and all(np.array_equal(read[name], ARRAYS[name]) for name in ARRAYS)
  write_archive(tmp_path / "again.gr2", members, {"format": 1})
  assert (tmp_path / "again.gr2").read_bytes() == path.read_bytes()
  assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "C:x", "a//b", "a/\x1b[2J"])
def test_names_that_climb_out_are_neither_written_nor_read(path, name):
  with pytest.raises(ValueError, match="no name to find a member by"):
    write_archive(path, {name: b""}, {})
  assert not path.exists()
  write(path, {"fine.json": b"{}", name: b"{}"})
  assert "climb out" in refusal(path, lambda archive: None)


def test_files_that_are_none(path, tmp_path):
  assert "there is no such file" in refusal(path, lambda archive: None)
  path.write_text("# notes")
  assert "no run file of gr2_jax" in refusal(path, lambda archive: None)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("slides.xml", "<x/>")
  assert f"has no {MANIFEST}" in refusal(path, lambda archive: None)
  write(path, {}, {"members": [1]})
  assert "lists no members" in refusal(path, lambda archive: None)


def test_a_file_that_is_cut_short_or_changed(path):
  write_archive(path, {"a.bin": bytes(np.random.default_rng(0).integers(256, size=5000, dtype=np.uint8)), "b.json": b"{}"}, {})
  whole = path.read_bytes()
  for kept in (30, len(whole) // 2, len(whole) - 3):
    path.write_bytes(whole[:kept])
    assert "is cut short" in refusal(path, lambda archive: archive.read("a.bin"))
  path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
  assert "is damaged: a.bin" in refusal(path, lambda archive: archive.read("a.bin"))
  write(path, {"a.json": b"{}"}, {"members": {"a.json": {"bytes": 2, "sha256": "0" * 64}, "gone.json": {"sha256": ""}}})
  assert "a.json is not what the manifest lists" in refusal(path, lambda archive: archive.read("a.json"))
  assert "lacks gone.json" in refusal(path, lambda archive: archive.read("gone.json"))


@pytest.mark.parametrize("text", ["[1]", '{"x": NaN}', '{"x": 1e999}', '{"x": ' + "9" * 5000 + "}", "[" * 200_000, "import os", "\xff"])
def test_what_is_no_json_of_finite_numbers(path, text):
  write(path, {"x.json": text.encode("latin-1")})
  assert "x.json" in refusal(path, lambda archive: archive.read_json("x.json"))


def test_what_unpacks_to_more_than_a_run_ever_holds(path, monkeypatch):
  monkeypatch.setattr(archive_module, "_MOST_BYTES", 10_000)
  write(path, {"zeros.json": bytes(9_000), "more.json": bytes(9_000), "bomb.npz": dump_arrays({"x": np.zeros(100_000)})})
  assert "unpacks to more than" in refusal(path, lambda archive: [archive.read("zeros.json"), archive.read("more.json")])
  assert "bomb.npz" in refusal(path, lambda archive: archive.read_arrays("bomb.npz"))
  monkeypatch.setattr(archive_module, "_MOST_MEMBERS", 2)
  assert "more than 2 of them" in refusal(path, lambda archive: None)


class Called:
  """Unpickled, it would leave a mark."""

  calls = 0

  def __reduce__(self):
    return (Called.mark, ())

  @staticmethod
  def mark():
    Called.calls += 1


def npy(content, dtype="<f8", shape=(2,)):
  """An `.npz` of one array with whatever header and content."""
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as file:
    file.writestr("x.npy", header.getvalue() + content)
  return packed.getvalue()


def test_arrays_that_hold_code_or_promise_more_than_they_have(path):
  cases = {
    "code": npy(pickle.dumps(np.array([Called(), 1], object)), "|O"),
    "huge": npy(bytes(16), shape=(10**12,)),
    "short": npy(bytes(8)),
  }
  write(path, {f"{name}.npz": content for name, content in {**cases, "none": b"PK\x03\x04"}.items()})
  for name in (*cases, "none"):
    assert f"{name}.npz holds no arrays" in refusal(path, lambda archive, name=name: archive.read_arrays(f"{name}.npz"))
  assert Called.calls == 0
