"""Artifacts that are not what their stage left are told from those that are."""

import json

import pytest
from toy_runs import COMMAND, DATA, make_config, need

from gr2_jax.runs.artifacts import check_intact, refresh_digests
from gr2_jax.runs.life import open_stage
from gr2_jax.runs.run import RunError, begin_run


@pytest.fixture
def run(tmp_path):
  """Its stage `data` left a file and a folder, and half of a file that was being written."""
  run = begin_run(tmp_path, make_config(), COMMAND)
  with open_stage(run, need(DATA)):
    run.path("data", "items.jsonl").write_text("one\ntwo\n")
    run.path("data", "checkpoints", "5", "state").mkdir(parents=True)
    run.path("data", "checkpoints", "5", "state", "0").write_bytes(bytes(100))
    run.path("data", ".items.7.part.jsonl").write_text("one")
  return run


def test_what_is_as_it_was_left(run):
  outputs = run.done("data")["outputs"]
  assert {name: of["bytes"] for name, of in outputs.items()} == {"checkpoints": 100, "items.jsonl": 8}
  check_intact(run, "data")
  check_intact(run, "rl")  # not finished: nothing to compare


DAMAGE = {
  "cut short": ("items.jsonl", lambda path: path.write_text("one\n"), "4 bytes instead of 8"),
  "another content": ("items.jsonl", lambda path: path.write_text("two\none\n"), "content"),
  "gone": ("items.jsonl", lambda path: path.unlink(), "gone"),
  "a flipped byte in a folder": ("checkpoints", lambda path: (path / "5" / "state" / "0").write_bytes(bytes(99) + b"1"), "content"),
  "a file more": ("checkpoints", lambda path: (path / "6").write_text(""), "content"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_names_the_artifact_and_the_stage_to_run_again(run, case):
  name, damage, problem = DAMAGE[case]
  damage(run.path("data", name))
  with pytest.raises(RunError, match=rf"data/{name} is .*{problem}.*remove {run.path('data')} .*'data'"):
    check_intact(run, "data")
  check_intact(run, "data", *{"checkpoints", "items.jsonl"} - {name})


def test_a_run_of_an_earlier_version_has_names_alone(run):
  done = run.done("data")
  run.path("data", "done.json").write_text(json.dumps(done | {"outputs": ["items.jsonl"]}))
  check_intact(run, "data")


def test_what_was_made_again_is_intact_and_all_else_is_still_watched(run):
  before = run.done("data")
  run.path("data", "items.jsonl").write_text("three\n")
  run.path("data", "more.txt").write_text("new")
  run.path("data", "checkpoints", "5", "state", "0").write_bytes(b"damaged")
  refresh_digests(run, "data", "items.jsonl", "more.txt")
  after = run.done("data")
  assert list(after["outputs"]) == ["checkpoints", "items.jsonl", "more.txt"] and after["outputs"]["items.jsonl"]["bytes"] == 6
  assert after | {"outputs": 0} == before | {"outputs": 0} and after["outputs"]["checkpoints"] == before["outputs"]["checkpoints"]
  check_intact(run, "data", "items.jsonl", "more.txt")
  with pytest.raises(RunError, match="checkpoints is damaged"):
    check_intact(run, "data")


def test_nothing_is_written_of_a_stage_that_is_not_finished(run):
  refresh_digests(run, "rl", "items.jsonl")
  assert not run.path("rl").exists()
  done = run.done("data") | {"outputs": ["items.jsonl"]}
  run.path("data", "done.json").write_text(json.dumps(done))
  refresh_digests(run, "data", "items.jsonl")
  assert run.done("data") == done
