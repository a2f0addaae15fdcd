"""Stages: their order, which of them a config needs, when one is finished, what refuses it, and how one is taken over."""

import dataclasses
import json
import os
import pathlib

import pytest
from toy_runs import COMMAND, DATA, RL, finish, finished_run, make_config, need, unchanged, write

from gr2_jax.data.schema import DataError
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, read_policies
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.stages import Init, Stage, check_stages, is_finished, needed_stages, open_stage, sort_stages, take_over

POLICY = PolicyRecord("rl", (RankerRecord("policy", "RL policy", "reason"),))


def stage(name, *inputs, **declared):
  return Stage(name, write, reads=("seed",), inputs=inputs, **declared)


def leave_policy(config):
  return (POLICY,)


def names(stages):
  return [stage.name for stage in stages]


# Order.


def test_each_stage_comes_after_all_that_it_may_read():
  stages = [
    stage("report", "data", uses_policies=True),
    stage("tune", "data", init=Init("tune.init", ("teach", "base")), policies=leave_policy),
    stage("teach", "base", policies=leave_policy),
    stage("base", "data", uses=("extra",)),
    stage("extra"),
    stage("data"),
  ]
  expected = ["data", "extra", "base", "teach", "tune", "report"]
  assert names(sort_stages(stages)) == names(sort_stages(reversed(stages))) == expected


def test_stages_free_to_choose_come_by_name_and_unknown_inputs_hold_nothing_up():
  assert names(sort_stages([stage("c"), stage("a", "elsewhere"), stage("b")])) == ["a", "b", "c"]


def test_stages_that_wait_for_each_other_are_named():
  with pytest.raises(RunError, match="a, b"):
    sort_stages([stage("a", "b"), stage("b", "a"), stage("c")])


def test_a_stage_that_leaves_a_policy_and_reads_policies_does_not_wait_for_itself():
  assert names(sort_stages([stage("b", uses_policies=True, policies=leave_policy), stage("a", policies=leave_policy)])) == ["a", "b"]


# What a config needs.

PIPELINE = (
  stage("data"),
  stage("teach", "data", policies=leave_policy),
  stage("shorten", "data", when="data.source"),
  stage("rl", "data", init=Init("rl.init", ("data", "teach")), policies=leave_policy),
  stage("last", "rl", uses=("shorten",), uses_policies=True),
)


def needed(**changes):
  config = make_config()
  config.rl.init = "teach"
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return {one.name: one for one in needed_stages(PIPELINE, config)}


def test_what_leads_to_the_last_stage_is_needed_and_what_the_config_asks_for():
  found = needed(data__source="")
  assert list(found) == ["data", "teach", "rl", "last"]
  assert found["rl"].inputs == ("data", "teach") and found["last"].inputs == ("rl", "teach")
  assert list(needed(data__source="", rl__init="data")) == ["data", "rl", "last"]
  assert needed(data__source="", rl__init="data")["last"].inputs == ("rl",)
  asked = needed()
  assert list(asked) == ["data", "teach", "shorten", "rl", "last"] and set(asked["last"].inputs) == {"rl", "shorten", "teach"}
  assert [one.place for one in found.values()] == [0, 1, 3, 4], "places are among all stages, whatever is left out"


@pytest.mark.parametrize("init", ["teacher", "shorten"])
def test_a_stage_that_starts_from_no_stage(init):
  with pytest.raises(RunError, match=r"rl\.init"):
    needed(rl__init=init)


def test_a_config_without_the_key_that_names_the_start():
  with pytest.raises(RunError, match=r"rl\.init"):
    needed_stages(PIPELINE, make_config())


def test_an_input_that_is_no_stage():
  with pytest.raises(RunError, match="'nowhere'"):
    needed_stages([stage("data", "nowhere")], make_config())


# Before anything runs.


def test_inputs_are_finished_or_run_before(tmp_path):
  run = Run(tmp_path / "a", make_config())
  check_stages(run, [need(DATA), need(RL)])
  for order in ([need(RL)], [need(RL), need(DATA)]):
    with pytest.raises(RunError, match=r"'rl' needs the artifacts of data(?s:.*)--stages=data,rl"):
      check_stages(run, order)
  assert not run.directory.exists()
  finish(begin_run(run.directory, run.config, COMMAND), need(DATA))
  check_stages(run, [need(RL)])


@pytest.mark.parametrize("key", [{"reads": ("seed", "market")}, {"files": ("data.folder",)}])
def test_a_key_that_the_config_lacks(tmp_path, key):
  with pytest.raises(RunError, match=r"market|data\.folder"):
    check_stages(Run(tmp_path, make_config()), [need(DATA, **key)])


# A stage's life.


def test_a_stage_that_ends_is_done_with_its_outputs_and_place(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  assert not is_finished(run, need(DATA))
  finish(run, need(DATA, 4))
  assert is_finished(run, need(DATA, 4))
  done = json.loads((tmp_path / "data" / "done.json").read_text())
  assert done["outputs"] == ["out.txt"] and done["place"] == 4 and done["seconds"] >= 0
  assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["done.json", "out.txt"]


def test_a_stage_leaves_its_policies_in_the_manifest(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with open_stage(run, need(DATA, policies=leave_policy)):
    assert read_policies(run) == []
  assert read_policies(run) == [POLICY]
  assert run.done("data")["outputs"] == ["policies.json"]


def test_a_stage_that_breaks_off_is_begun_and_goes_on(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(RuntimeError), open_stage(run, need(DATA)):
    raise RuntimeError
  assert not is_finished(run, need(DATA)) and not run.is_done("data")
  started = json.loads((tmp_path / "data" / "started.json").read_text())
  (tmp_path / "data" / "started.json").write_text(json.dumps({**started, "seconds": 100.0}))
  finish(run, need(DATA))
  assert run.done("data")["seconds"] >= 100.0, "the seconds of all sessions"
  assert not (tmp_path / "data" / "started.json").exists()


def test_a_stage_that_refuses_its_input_was_not_begun_unless_it_has_a_checkpoint(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  with pytest.raises(DataError), open_stage(run, need(DATA)):
    raise DataError("line 3: no item")
  assert not (tmp_path / "data" / "started.json").exists()
  with pytest.raises(DataError), open_stage(run, need(DATA)):
    (tmp_path / "data" / "checkpoints").mkdir()
    raise DataError("line 3: no item")
  assert (tmp_path / "data" / "started.json").exists()


@pytest.mark.parametrize("begun", ["finished", "begun"])
def test_a_stage_of_other_inputs_is_neither_skipped_nor_continued(tmp_path, begun):
  run = begin_run(tmp_path, make_config(), COMMAND)
  if begun == "finished":
    finish(run, need(DATA))
  else:
    with pytest.raises(RuntimeError), open_stage(run, need(DATA)):
      raise RuntimeError
  with unchanged(tmp_path), pytest.raises(RunError, match=r"nothing was overwritten(?s:.*)format: 1 -> 2"):
    is_finished(run, need(DATA, format=2))
  with pytest.raises(RunError, match=r"config\.data\.users: 5 -> 6"):
    is_finished(dataclasses.replace(run, config=make_config(data__users=6)), need(DATA))


def test_changed_code_of_a_stage_reaches_those_that_read_it(tmp_path):
  run = finished_run(tmp_path)
  assert is_finished(run, need(RL, 1))
  done = run.done("data")
  (tmp_path / "data" / "done.json").write_text(json.dumps(done | {"fingerprint": "made anew"}))
  with pytest.raises(RunError, match=r"inputs\.data: "):
    is_finished(run, need(RL, 1))


def test_changed_external_files_are_noticed_by_content(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "items.jsonl").write_text("one")
  run = begin_run(tmp_path / "run", make_config(data__source=str(source)), COMMAND)
  finish(run, need(DATA))
  (source / "items.jsonl").write_text("one")
  assert is_finished(run, need(DATA))
  (source / "items.jsonl").write_text("two")
  with pytest.raises(RunError, match=r"files\.data\.source"):
    is_finished(run, need(DATA))


def test_a_lost_artifact_is_an_error_not_a_skip(tmp_path):
  run = finished_run(tmp_path)
  (tmp_path / "data" / "out.txt").unlink()
  with pytest.raises(RunError, match=r"out\.txt of the finished stage 'data' is gone"):
    is_finished(run, need(DATA))


def test_what_another_run_made_decides_a_stage_that_reads_it(tmp_path):
  config = make_config(data__source=str(tmp_path / "a"))
  config.rl.teacher = "data"
  reader, run = need(RL, 1, runs=(("data.source", "rl.teacher"),)), Run(tmp_path / "b", config)
  with pytest.raises(RunError, match=r"--config\.data\.source: .* has no finished stage 'data'"):
    check_stages(run, [need(DATA), reader])
  check_stages(run, [need(DATA), reader], ahead={pathlib.Path(tmp_path / "a")})
  finished_run(tmp_path / "a")
  check_stages(run, [need(DATA), reader])
  run, without_hash = begin_run(tmp_path / "b", config, COMMAND), need(DATA, files=())
  finish(run, without_hash)
  finish(run, reader)
  assert is_finished(run, reader)
  done = tmp_path / "a" / "data" / "done.json"
  done.write_text(json.dumps(json.loads(done.read_text()) | {"fingerprint": "retrained"}))
  with pytest.raises(RunError, match=r'runs\.data\.source: .*-> "retrained"'):
    is_finished(run, reader)


# Taking over.


@pytest.fixture
def finished(tmp_path):
  """A finished run at `a`, with metrics and a policy."""
  run = begin_run(tmp_path / "a", make_config(), COMMAND)
  finish(run, need(DATA, policies=leave_policy))
  finish(run, need(RL, 1))
  (tmp_path / "a" / "metrics").mkdir()
  for name in ("data", "data_more", "rl"):
    (tmp_path / "a" / "metrics" / f"{name}.jsonl").write_text(name)
  return run


def test_a_stage_with_the_same_inputs_is_taken_over_by_links(tmp_path, finished):
  run = begin_run(tmp_path / "b", make_config(rl__steps=9), COMMAND)
  assert take_over(run, need(DATA), [run, finished]) is finished
  assert is_finished(run, need(DATA)) and read_policies(run) == [POLICY]
  assert (tmp_path / "b" / "data" / "out.txt").samefile(tmp_path / "a" / "data" / "out.txt")
  assert sorted(p.name for p in (tmp_path / "b" / "metrics").iterdir()) == ["data.jsonl", "data_more.jsonl"]
  assert take_over(run, need(RL, 1), [run, finished]) is None  # another rl.steps
  finish(run, need(RL, 1))
  assert is_finished(run, need(RL, 1))


def test_what_was_begun_here_or_had_other_inputs_is_not_taken_over(tmp_path, finished):
  other = begin_run(tmp_path / "b", make_config(data__users=6), COMMAND)
  assert take_over(other, need(DATA), [finished]) is None
  begun = begin_run(tmp_path / "c", make_config(), COMMAND)
  with pytest.raises(RuntimeError), open_stage(begun, need(DATA)):
    raise RuntimeError
  assert take_over(begun, need(DATA), [finished]) is None
  assert not is_finished(begun, need(DATA))


def test_a_file_system_without_links_gets_copies(tmp_path, finished, monkeypatch):
  def refuse(*_):
    raise OSError("no links here")

  monkeypatch.setattr(os, "link", refuse)
  run = begin_run(tmp_path / "b", make_config(), COMMAND)
  assert take_over(run, need(DATA), [finished]) is finished
  copied = tmp_path / "b" / "data" / "out.txt"
  assert copied.read_text() == "data" and not copied.samefile(tmp_path / "a" / "data" / "out.txt")


def test_taking_over_goes_on_after_a_crash(tmp_path, finished):
  run = begin_run(tmp_path / "b", make_config(), COMMAND)
  half = tmp_path / "b" / ".data.partial"
  half.mkdir()
  (half / "half.txt").write_text("left by a killed process")
  assert take_over(run, need(DATA), [finished]) is finished
  assert sorted(p.name for p in (tmp_path / "b" / "data").iterdir()) == ["done.json", "out.txt", "policies.json"]
  assert not half.exists()
