"""Files that appear whole or not at all, and what is left of those that did not."""

import os

import pytest

from gr2_jax.files import is_partial, remove_partials, replacing, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "a.json"
  with pytest.raises(RuntimeError), replacing(path) as partial:
    partial.write_text("half")
    raise RuntimeError
  assert list(path.parent.iterdir()) == []
  write_json(path, {"a": 1})
  assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
  with pytest.raises(FileNotFoundError), replacing(tmp_path / "sids.tar.gz") as partial:
    partial.write_text("")
    left = partial.rename(tmp_path / partial.name.replace(str(os.getpid()), "123"))
  killed = ("7.orbax-checkpoint-tmp/state/d/0", "7/state.orbax-checkpoint-tmp-1/0")
  for name in (".items.jsonl.123.part.gz", ".data.partial/out.txt", *(f"checkpoints/{path}" for path in killed)):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("")
  whole = [tmp_path / name for name in ("items.part.gz", ".hidden", "checkpoints/7/state.json")]
  for path in whole:
    path.write_text("")
  assert is_partial(left) and not any(map(is_partial, whole))
  remove_partials(tmp_path)
  assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(whole)
