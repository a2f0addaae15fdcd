"""A run directory records what was run, and touches nothing that it did not make."""

import json

import pytest
from ml_collections import ConfigDict
from toy_runs import COMMAND, CONFIG, DATA, finish, finished_run, make_config, need, unchanged

from gr2_jax.runs.life import is_finished, open_stage
from gr2_jax.runs.run import Run, RunError, begin_run


def test_what_a_run_records(tmp_path):
  folder = tmp_path / "run"
  run = begin_run(folder, make_config(), COMMAND)
  assert run.directory == folder and run.main
  assert json.loads((folder / "config.json").read_text()) == {**CONFIG, "rl": {"steps": 4, "sizes": [1, 2]}}
  versions = json.loads((folder / "versions.json").read_text())
  packages = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "platform", "device_kind", "git_commit"}
  assert packages <= set(versions) and versions["platform"] == "cpu"
  assert (folder / "command.txt").read_text().endswith("python -m experiments.run '--x=a b'\n")


def test_a_run_is_opened_to_be_read(tmp_path):
  begin_run(tmp_path, make_config(), COMMAND)
  with unchanged(tmp_path):
    run = Run.open(tmp_path)
  assert run.config.rl.steps == 4 and run.config.is_locked and not run.main
  with pytest.raises(RunError, match="is no run"):
    Run.open(tmp_path / "elsewhere")


def test_where_things_lie(tmp_path):
  run = finished_run(tmp_path)
  assert run.path("rl", "a", "b.json") == tmp_path / "rl" / "a" / "b.json"
  assert run.metrics_path("rl") == tmp_path / "metrics" / "rl.jsonl"
  assert run.is_done("rl") and list(run.done("rl")["outputs"]) == ["out.txt"]
  assert not run.is_done("sft") and run.done("sft") is None


def test_every_command_is_noted_with_versions_that_changed(tmp_path):
  for _ in range(2):
    begin_run(tmp_path, make_config(), COMMAND)
  assert len((tmp_path / "command.txt").read_text().splitlines()) == 2
  versions = json.loads((tmp_path / "versions.json").read_text())
  (tmp_path / "versions.json").write_text(json.dumps(versions | {"numpy": "0.1"}))
  begin_run(tmp_path, make_config(), COMMAND)
  assert f'# numpy: "0.1" -> "{versions["numpy"]}"' in (tmp_path / "command.txt").read_text().splitlines()[-1]
  assert json.loads((tmp_path / "versions.json").read_text())["numpy"] == "0.1", "the versions that it was begun with stay"


def test_the_newest_config_stands_in_its_file_and_the_one_before_in_the_log(tmp_path):
  begin_run(tmp_path, make_config(), COMMAND)
  begin_run(tmp_path, make_config(rl__steps=9), COMMAND)
  assert Run.open(tmp_path).config.rl.steps == 9
  assert (tmp_path / "command.txt").read_text().splitlines()[-1].endswith(" # config.rl.steps: 4 -> 9")


def test_what_a_killed_process_left_half_written_is_swept_out(tmp_path):
  for name in ("versions.json", ".config.7.part.json"):  # killed before it was a run
    (tmp_path / name).write_text("{}")
  begin_run(tmp_path, make_config(), COMMAND)
  (tmp_path / "data" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
  (tmp_path / "data" / ".items.7.part.gz").write_text("")
  begin_run(tmp_path, make_config(), COMMAND)
  assert [path.name for path in tmp_path.rglob(".*")] == [] and list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_is_no_run(tmp_path):
  (tmp_path / "thesis.txt").write_text("precious")
  with unchanged(tmp_path):
    with pytest.raises(RunError, match="is not empty and is no run"):
      begin_run(tmp_path, make_config(), COMMAND)
    with pytest.raises(RunError, match="is a file"):
      begin_run(tmp_path / "thesis.txt", make_config(), COMMAND)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "versions.json"])
def test_a_damaged_file_of_the_run_is_named(tmp_path, name, text):
  begin_run(tmp_path, make_config(), COMMAND)
  (tmp_path / name).write_text(text)
  with pytest.raises(RunError, match=f"{name} is damaged"):
    begin_run(tmp_path, make_config(), COMMAND)
  if name == "config.json":
    with pytest.raises(RunError, match=f"{name} is damaged"):
      Run.open(tmp_path)


@pytest.mark.parametrize("name", ["done.json", "started.json"])
def test_a_damaged_mark_names_its_stage(tmp_path, name):
  run = begin_run(tmp_path, make_config(), COMMAND)
  finish(run, need(DATA))
  (tmp_path / "data" / "done.json").rename(tmp_path / "data" / name)
  (tmp_path / "data" / name).write_text('{"reads": ')
  with pytest.raises(RunError, match=rf"{name} is damaged.*remove .*data and run the stage 'data' again"):
    is_finished(run, need(DATA))


def test_a_config_without_a_seed(tmp_path):
  with pytest.raises(RunError, match=r"config\.seed"):
    begin_run(tmp_path / "run", ConfigDict({"data": {}}), COMMAND)
  assert not (tmp_path / "run").exists()


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
  begin_run(tmp_path, make_config(), COMMAND)
  before = sorted(tmp_path.rglob("*"))
  run = begin_run(tmp_path, make_config(), COMMAND, main=False)
  assert not run.main
  with unchanged(tmp_path), open_stage(run, need(DATA)):
    pass
  assert sorted(tmp_path.rglob("*")) == before
