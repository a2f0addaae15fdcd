"""A run does what is missing, refuses what does not fit, and overwrites nothing."""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import types

import pytest
from ml_collections import ConfigDict
from small_runs import tiny_config

from experiments.run import STAGES, choose_stages, execute
from gr2_jax.runs.run import Run, RunError, Stage, check_stages, list_differences, open_run, read_config

CONFIG = {"seed": 3, "data": {"source": "synthetic", "users": 5}, "rl": {"steps": 4, "sizes": (1, 2)}}


def config(**changes):
  made = ConfigDict(CONFIG)
  made.update_from_flattened_dict(changes)
  return made


DATA = Stage("data", "toy_data", reads=("seed", "data"), files=("data.source",))
RL = Stage("rl", "toy_rl", reads=("seed", "rl"), inputs=("data",))


@pytest.fixture
def calls(monkeypatch):
  """The modules of the two stages; `calls` lists what ran, `calls.hooks` what they do besides."""

  class Calls(list):
    def __init__(self):
      self.hooks = {}

  made = Calls()

  def stage(name):
    def run(config, run, progress, stop):
      made.append(name)
      made.hooks.get(name, lambda _: None)(stop)
      run.path(name, "out.txt").write_text(name)

    return types.SimpleNamespace(run=run)

  monkeypatch.setitem(sys.modules, "toy_data", stage("data"))
  monkeypatch.setitem(sys.modules, "toy_rl", stage("rl"))
  return made


def go(workdir, conf=None, names=None, stages=(DATA, RL)):
  return execute(conf or config(), str(workdir), names, ["python", "-m", "experiments.run", "--x=a b"], stages)


def test_what_a_run_records(tmp_path, calls):
  assert go(tmp_path / "run") == 0
  folder = tmp_path / "run"
  assert json.loads((folder / "config.json").read_text()) == {**CONFIG, "rl": {"steps": 4, "sizes": [1, 2]}}
  assert read_config(folder).rl.steps == 4
  versions = json.loads((folder / "versions.json").read_text())
  assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "platform", "device_kind", "git_commit"} <= set(
    versions
  )
  assert versions["platform"] == "cpu"
  assert (folder / "command.txt").read_text().endswith("python -m experiments.run '--x=a b'\n")
  done = json.loads((folder / "rl" / "done.json").read_text())
  assert done["outputs"] == ["out.txt"]
  assert done["seconds"] >= 0
  assert sorted(p.name for p in (folder / "rl").iterdir()) == ["done.json", "out.txt"]


def test_the_same_command_again_skips_what_is_done(tmp_path, calls, capsys):
  assert go(tmp_path) == 0
  capsys.readouterr()
  assert go(tmp_path) == 0
  assert calls == ["data", "rl"]
  assert "data: done before in 0:00, skipped" in capsys.readouterr().out
  assert len((tmp_path / "command.txt").read_text().splitlines()) == 2


def test_another_config_lists_what_differs_and_touches_nothing(tmp_path, calls, capsys):
  go(tmp_path)
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  assert go(tmp_path, config(**{"rl.steps": 9})) == 1
  error = capsys.readouterr().err
  assert "rl.steps: 4 -> 9" in error
  assert "--workdir" in error
  assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_no_run(tmp_path, calls, capsys):
  (tmp_path / "thesis.txt").write_text("precious")
  assert go(tmp_path) == 1
  assert "is not empty and is no run" in capsys.readouterr().err
  assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
  assert go(tmp_path / "thesis.txt") == 1
  assert "is a file" in capsys.readouterr().err
  with pytest.raises(RunError, match="is no run"):
    read_config(tmp_path)


def test_a_config_without_a_seed(tmp_path):
  with pytest.raises(RunError, match=r"config\.seed is missing"):
    open_run(tmp_path / "run", ConfigDict({"data": {}}), [])


def test_changed_external_files_are_noticed_by_content(tmp_path, calls, capsys):
  source = tmp_path / "source"
  source.mkdir()
  (source / "items.jsonl").write_text("one")
  conf = config(**{"data.source": str(source)})
  assert go(tmp_path / "run", conf) == 0
  (source / "items.jsonl").write_text("one")
  assert go(tmp_path / "run", conf) == 0
  (source / "items.jsonl").write_text("two")
  assert go(tmp_path / "run", conf) == 1
  error = capsys.readouterr().err
  assert "files.data.source" in error
  assert "nothing was overwritten" in error
  assert calls == ["data", "rl"]


def test_changed_code_format_reaches_only_its_stage(tmp_path, calls, capsys):
  go(tmp_path)
  newer = dataclasses.replace(RL, format=2)
  assert go(tmp_path, names=["data"], stages=(DATA, newer)) == 0
  assert go(tmp_path, stages=(DATA, newer)) == 1
  assert "format: 1 -> 2" in capsys.readouterr().err


def test_a_lost_artifact_is_an_error_not_a_skip(tmp_path, calls, capsys):
  go(tmp_path)
  (tmp_path / "data" / "out.txt").unlink()
  assert go(tmp_path) == 1
  assert "out.txt of the finished stage 'data' is gone" in capsys.readouterr().err


def test_stages_run_in_order_alone_or_after_their_inputs(tmp_path, calls, capsys):
  assert go(tmp_path / "a", names=["rl"]) == 1
  assert "stage 'rl' needs the artifacts of data" in (error := capsys.readouterr().err)
  assert "--stages=data,rl" in error
  assert not (tmp_path / "a").exists()
  assert go(tmp_path / "a", names=["data"]) == 0
  assert go(tmp_path / "a", names=["rl"]) == 0
  assert go(tmp_path / "b", names=["rl", "data"]) == 0
  assert calls == ["data", "rl", "data", "rl"]


def test_unknown_stage_and_section(tmp_path, calls, capsys):
  assert go(tmp_path, names=["dta"]) == 1
  assert "'dta' is no stage, did you mean data?; there are: data, rl" in capsys.readouterr().err
  assert go(tmp_path, stages=(dataclasses.replace(DATA, reads=("seed", "market")),)) == 1
  assert "stage 'data' reads config.market, which this config lacks" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_exits_cleanly_and_goes_on(tmp_path, calls, capsys, number, code):
  def interrupted(stop):
    os.kill(os.getpid(), number)
    stop.check()

  calls.hooks["rl"] = interrupted
  assert go(tmp_path) == code
  assert "the same command goes on from here" in capsys.readouterr().err
  assert (tmp_path / "data" / "done.json").exists()
  assert not (tmp_path / "rl" / "done.json").exists()
  calls.hooks.clear()
  assert go(tmp_path) == 0
  assert calls == ["data", "rl", "rl"]


def test_a_signal_that_a_stage_outlives_stops_before_the_next(tmp_path, calls):
  calls.hooks["data"] = lambda stop: os.kill(os.getpid(), signal.SIGTERM)
  assert go(tmp_path) == 143
  assert (tmp_path / "data" / "done.json").exists()
  assert go(tmp_path) == 0
  assert calls == ["data", "rl"]


def test_a_stage_begun_with_other_inputs_is_not_continued(tmp_path, calls, capsys):
  calls.hooks["data"] = lambda stop: (_ for _ in ()).throw(RuntimeError("killed"))
  with pytest.raises(RuntimeError, match="killed"):
    go(tmp_path)
  calls.hooks.clear()
  assert go(tmp_path, stages=(dataclasses.replace(DATA, format=2), RL)) == 1
  assert "format: 1 -> 2" in capsys.readouterr().err
  assert go(tmp_path) == 0


def test_seconds_count_all_sessions(tmp_path, calls):
  run = open_run(tmp_path, config(), [])
  with pytest.raises(RuntimeError), run.open_stage(DATA):
    raise RuntimeError
  started = json.loads((tmp_path / "data" / "started.json").read_text())
  (tmp_path / "data" / "started.json").write_text(json.dumps({**started, "seconds": 100.0}))
  with run.open_stage(DATA):
    pass
  assert run.done("data")["seconds"] >= 100.0


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, calls):
  open_run(tmp_path, config(), [])
  before = sorted(tmp_path.rglob("*"))
  run = open_run(tmp_path, config(), [], main=False)
  with run.open_stage(DATA):
    pass
  assert sorted(tmp_path.rglob("*")) == before


def test_list_differences():
  assert list_differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
    "a.c: 2 -> 5",
    "d: 3 -> (none)",
    "e: (none) -> 4",
  ]


PRIORS = {
  # rl.init, opd.init -> the stages that are left out, and what RL and evaluation read beside data, tokenize and slates
  ("sft", "midtrain"): ({"opd"}, {"sft"}, {"sft", "rl"}),
  ("midtrain", "midtrain"): ({"traces", "sft", "opd"}, {"midtrain"}, {"rl"}),
  ("opd", "midtrain"): ({"traces", "sft"}, {"opd"}, {"opd", "rl"}),
  ("opd", "sft"): (set(), {"opd"}, {"sft", "opd", "rl"}),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_the_pipeline_runs_what_the_prior_needs_and_reads_only_earlier_stages(prior):
  left_out, rl_reads, evaluation_reads = PRIORS[prior]
  conf = tiny_config(rl__init=prior[0], opd__init=prior[1], opd__teacher_run="teacher")
  stages = {stage.name: stage for stage in choose_stages(None, STAGES, conf)}
  assert set(stages) == {stage.name for stage in STAGES} - left_out - {"direct", "prune", "compress"}
  common = {"data", "tokenize", "slates"}
  assert set(stages["rl"].inputs) == common | rl_reads and set(stages["evaluation"].inputs) == common | evaluation_reads
  run = Run(pathlib.Path("nowhere"), conf)
  check_stages(run, list(stages.values()), ahead={pathlib.Path("teacher")})
  if "opd" in stages:
    with pytest.raises(RunError, match=r"--config\.opd\.teacher_run: teacher has no finished stage 'rl'; run that first"):
      check_stages(run, list(stages.values()))


def test_a_stage_that_nothing_else_needs_runs_where_the_config_asks_for_it():
  def stages(**changes):
    return {stage.name: set(stage.inputs) for stage in choose_stages(None, STAGES, tiny_config(**changes))}

  direct = stages(direct__steps=1, direct__init="midtrain")
  assert direct["direct"] == {"data", "tokenize", "slates", "midtrain"} and "direct" in direct["evaluation"] and "prune" not in direct
  pruned = stages(prune__layers=1)
  assert "rl" in pruned["prune"] and "prune" in pruned["evaluation"] and "direct" not in pruned
  assert "sft" in stages(rl__init="midtrain", sft__without_reasoning=True)["evaluation"]
  assert "compress" in stages(compressor__variants=("rules",))["evaluation"]


def test_a_stage_that_starts_from_no_stage():
  with pytest.raises(RunError, match="'teacher' is no stage to start from; there are: data, tokenize"):
    choose_stages(None, STAGES, tiny_config(rl__init="teacher"))
  with pytest.raises(RunError, match="lacks a key that names the stage to start from"):
    choose_stages(None, STAGES, config())


def test_what_another_run_made_decides_a_stage_that_reads_it(tmp_path, calls, capsys):
  reader = dataclasses.replace(RL, runs=(("data.source", "teacher"),))
  settings = {"data.source": str(tmp_path / "a"), "teacher": "data"}
  assert go(tmp_path / "b", config(**settings), stages=(DATA, reader)) == 1
  assert f"--config.data.source: {tmp_path / 'a'} has no finished stage 'data'" in capsys.readouterr().err
  assert not (tmp_path / "b").exists()
  assert go(tmp_path / "a", names=["data"]) == 0
  without_hash = dataclasses.replace(DATA, files=())
  assert go(tmp_path / "b", config(**settings), stages=(without_hash, reader)) == 0
  assert go(tmp_path / "b", config(**settings), stages=(without_hash, reader)) == 0
  done = tmp_path / "a" / "data" / "done.json"
  done.write_text(json.dumps(json.loads(done.read_text()) | {"fingerprint": "retrained"}))
  assert go(tmp_path / "b", config(**settings), stages=(without_hash, reader)) == 1
  assert "runs.data.source: " in (error := capsys.readouterr().err) and '-> "retrained"' in error


@pytest.fixture
def finished(tmp_path, calls):
  """A finished run at `a`, of which `calls` forgets."""
  assert go(tmp_path / "a") == 0
  (tmp_path / "a" / "metrics").mkdir()
  for name in ("data", "data_more", "rl"):
    (tmp_path / "a" / "metrics" / f"{name}.jsonl").write_text(name)
  calls.clear()
  return Run(tmp_path / "a", config())


def test_a_stage_with_the_same_inputs_is_taken_over_by_links(tmp_path, finished, calls):
  run = open_run(tmp_path / "b", config(**{"rl.steps": 9}), [])
  assert run.take_over(DATA, [run, finished]) is finished
  assert run.is_done(DATA)
  assert (tmp_path / "b" / "data" / "out.txt").samefile(tmp_path / "a" / "data" / "out.txt")
  assert sorted(p.name for p in (tmp_path / "b" / "metrics").iterdir()) == ["data.jsonl", "data_more.jsonl"]
  assert run.take_over(RL, [run, finished]) is None  # another rl.steps
  assert go(tmp_path / "b", config(**{"rl.steps": 9})) == 0
  assert calls == ["rl"]


def test_what_was_begun_here_or_had_other_inputs_is_not_taken_over(tmp_path, finished):
  other = open_run(tmp_path / "b", config(**{"data.users": 6}), [])
  assert other.take_over(DATA, [finished]) is None
  begun = open_run(tmp_path / "c", config(), [])
  with pytest.raises(RuntimeError), begun.open_stage(DATA):
    raise RuntimeError
  assert begun.take_over(DATA, [finished]) is None
  assert not begun.is_done(DATA)


def test_a_file_system_without_links_gets_copies(tmp_path, finished, monkeypatch):
  def refuse(*_):
    raise OSError("no links here")

  monkeypatch.setattr(os, "link", refuse)
  run = open_run(tmp_path / "b", config(), [])
  assert run.take_over(DATA, [finished]) is finished
  copied = tmp_path / "b" / "data" / "out.txt"
  assert copied.read_text() == "data" and not copied.samefile(tmp_path / "a" / "data" / "out.txt")


def test_taking_over_goes_on_after_a_crash(tmp_path, finished):
  run = open_run(tmp_path / "b", config(), [])
  half = tmp_path / "b" / ".data.partial"
  half.mkdir()
  (half / "half.txt").write_text("left by a killed process")
  assert run.take_over(DATA, [finished]) is finished
  assert sorted(p.name for p in (tmp_path / "b" / "data").iterdir()) == ["done.json", "out.txt"]
  assert not half.exists()
