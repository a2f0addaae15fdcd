"""Finished stages are taken over from other runs where they had the same inputs, and are intact."""

import os

import pytest
from toy_runs import COMMAND, DATA, POLICY, RL, finish, finished_run, leave_policy, make_config, need, unchanged

from gr2_jax.runs.life import check_stages, is_finished, open_stage
from gr2_jax.runs.policies import read_policies
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.sharing import check_sources, find_runs, link_stage, plan_sharing, take_over
from gr2_jax.runs.stages import needed_stages


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


# Another run's.


def plan(run, *sources):
  return {name: other.directory.name for name, other in plan_sharing(run, needed_stages((DATA, RL), run.config), sources).items()}


def test_what_is_taken_over_is_known_before_anything_is_begun(tmp_path, finished):
  with unchanged(tmp_path):
    assert plan(Run(tmp_path / "b", make_config()), finished) == {"data": "a", "rl": "a"}
    assert plan(Run(tmp_path / "b", make_config(rl__steps=9)), finished) == {"data": "a"}
    assert plan(Run(tmp_path / "b", make_config(data__users=6)), finished) == {}
    assert plan(Run(tmp_path / "b", make_config())) == {}


def test_each_stage_comes_from_the_first_run_that_has_it(tmp_path, finished):
  other = finished_run(tmp_path / "other", rl__steps=9)
  assert plan(Run(tmp_path / "b", make_config(rl__steps=9)), finished, other) == {"data": "a", "rl": "other"}


def test_stages_taken_over_are_inputs_that_are_there(tmp_path, finished):
  run, known = Run(tmp_path / "b", make_config(rl__steps=9)), (DATA, RL)
  chosen = needed_stages(known, run.config)[1:]
  check_stages(run, chosen, known, sources=[finished])
  with pytest.raises(RunError, match="--stages=data,rl"):
    check_stages(run, chosen, known)


def test_damaged_artifacts_are_not_taken_over(tmp_path, finished):
  (tmp_path / "a" / "data" / "out.txt").write_text("atad")
  with pytest.raises(RunError, match=r"a/data/out\.txt is damaged"):
    link_stage(begin_run(tmp_path / "b", make_config(), COMMAND), "data", finished)
  assert not (tmp_path / "b" / "data").exists()


def test_a_source_of_which_nothing_fits_says_why(tmp_path, finished):
  run = Run(tmp_path / "b", make_config(data__users=6))
  needed = needed_stages((DATA, RL), run.config)
  with pytest.raises(RunError, match=r"--from: .*data\.users: 5 -> 6"):
    check_sources(run, needed, [finished])
  check_sources(run, needed, [])
  finish(begin_run(run.directory, run.config, COMMAND), need(DATA))
  check_sources(run, needed, [finished])  # the same command once more


def test_a_source_is_a_run_or_a_sweep(tmp_path, finished):
  assert [run.directory for run in find_runs(tmp_path / "a")] == [tmp_path / "a"]
  for name in ("x/seed_0", "x/seed_1"):
    begin_run(tmp_path / "sweep" / name, make_config(), COMMAND)
  assert [run.directory.name for run in find_runs(tmp_path / "sweep")] == ["seed_0", "seed_1"]
  with pytest.raises(RunError, match=r"--from: .* neither a run nor a sweep"):
    find_runs(tmp_path / "nowhere")
