"""The cache on disk: what was put is there after a restart, what a kill cut off is not, and nothing is asked twice."""

import pytest

from gr2_jax.data.disk_cache import DiskCache, content_key
from gr2_jax.data.schema import DataError


def test_values_outlive_the_process_and_a_cut_off_line_does_not(tmp_path):
  path = tmp_path / "folder" / "cache.jsonl"
  with DiskCache(path) as cache:
    cache.put("a", {"tokens": [1, -2], "text": "naïve 🌹"})
    cache.put("b", None)
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"key":"c","val')  # killed while it wrote
  with DiskCache(path) as cache:
    assert dict(zip(cache, map(cache.__getitem__, cache), strict=True)) == {"a": {"tokens": [1, -2], "text": "naïve 🌹"}, "b": None}
    assert "c" not in cache
    cache.put("c", 3)
  assert path.read_bytes().startswith(whole)
  assert DiskCache(path, write=False)["c"] == 3


def test_a_reader_writes_nothing(tmp_path):
  cache = DiskCache(tmp_path / "cache.jsonl", write=False)
  cache.put("a", 1)
  assert cache["a"] == 1 and not (tmp_path / "cache.jsonl").exists()


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"key": "b"}'])
def test_another_file_is_refused_with_its_line(tmp_path, line):
  path = tmp_path / "cache.jsonl"
  path.write_text('{"key": "a", "value": 1}\n' + line + "\n")
  with pytest.raises(DataError, match=r"cache.jsonl:2: not an entry of this cache"):
    DiskCache(path)


def test_keys_are_of_the_content():
  assert content_key({"a": 1, "b": ["x"]}) == content_key({"b": ["x"], "a": 1})
  assert content_key(["x", "y"]) != content_key(["xy"]) != content_key("xy")
  assert len(content_key("\ud800")) == 64  # half a character, as broken text has it
