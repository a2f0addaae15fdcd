"""Runs and sweeps travel as one file: what is read is what was run, and files of other formats, halves of sweeps and nonsense are told."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from finished_runs import make_finished_run

from gr2_jax.errors import ConfigError
from gr2_jax.runs.archive import ArchiveError, read_archive, write_archive
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.run_file import find_finished, read_run, read_run_file, split_path, write_run_file


@pytest.fixture
def file(tmp_path):
  """A file of one run, and the run."""
  make_finished_run(tmp_path / "run", seed=3)
  runs, _ = find_finished(tmp_path / "run")
  write_run_file(tmp_path / "x.gr2", runs, {"run": {"seed": 3}}, pages={})
  return tmp_path / "x.gr2", runs["run"]


def rewrite(path, change):
  """The file again with members that `change(members, about)` has changed."""
  with read_archive(path) as archive:
    about, members = archive.about, {name: archive.read(name) for name in archive.names}
  change(members, about)
  about.pop("members")
  write_archive(path, members, about)


def test_a_file_says_what_the_directory_says(file):
  path, run = file
  read, there = read_run_file(path), read_run(run)
  assert list(read.runs) == ["run"] and read.about["kind"] == "run" and read.about["runs"]["run"]["seed"] == 3
  record = read.runs["run"]
  for name in ("config", "versions", "commands", "stages", "results", "metrics"):
    assert getattr(record, name) == getattr(there, name), name
  assert record.per_slate.keys() == there.per_slate.keys() and record.config == json.loads((run.directory / "config.json").read_text())
  assert all(np.array_equal(record.per_slate[name], there.per_slate[name]) for name in there.per_slate)
  assert record.stages["data"]["outputs"]["items.jsonl.gz"]["sha256"] and record.metrics["rl"][3]["step"] == 4
  with zipfile.ZipFile(path) as archive:
    assert json.loads(archive.read("run/changes.json")) == {"seed": 3} and archive.read("run/card.md") == b"# by hand\n"


def test_a_config_that_is_older_than_a_setting_has_what_it_did(file):
  path, _ = file

  def forget(members, about):
    config = json.loads(members["run/config.json"])
    del config["evaluation"]["baselines"], config["data"]["split"]
    members["run/config.json"] = json.dumps(config).encode()

  rewrite(path, forget)
  config = read_run_file(path).runs["run"].config
  assert config["evaluation"]["baselines"] == [] and config["data"]["split"] == "leave_one_out"


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda members, about: about.update(format=2, written_by="7.0"), "of format 2, .*up to 1; update gr2_jax.*written by gr2_jax 7.0"),
    (lambda members, about: about.update(project="other"), "of another project"),
    (lambda members, about: about.update(format="import os"), "of another project"),
    (lambda members, about: about.update(runs={}), "holds no run"),
    (lambda members, about: members.pop("run/results.json"), "lacks run/results.json"),
    (lambda members, about: members.update({"run/versions.json": b'{"jax": [1]}'}), "versions.json holds something else than text"),
    (lambda members, about: members.update({"run/config.json": b'{"seed": "0"}'}), "config.json has no seed"),
    (lambda members, about: members.update({"run/results.json": b'{"titles": ["x"]}'}), "titles that are no text"),
    (lambda members, about: members.update({"run/stages.json": b'{"data": 1}'}), "nothing of what 'data' read"),
    (lambda members, about: members.update({"run/metrics/rl.jsonl": b'{"step": 1, "loss": "x"}'}), "something else than numbers"),
  ],
)
def test_a_file_that_is_not_as_it_should_be(file, change, told):
  path, _ = file
  rewrite(path, change)
  with pytest.raises(ArchiveError, match=told) as refused:
    read_run_file(path)
  assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


def make_sweep(folder):
  for variant in ("naive", "relative"):
    for seed in (0, 1):
      make_finished_run(folder / variant / f"seed_{seed}", seed)
  return folder


def test_a_sweep_has_its_runs_by_name_and_one_is_chosen(tmp_path):
  runs, unfinished = find_finished(make_sweep(tmp_path / "sweep"))
  assert not unfinished
  write_run_file(tmp_path / "x.gr2", runs, {name: {} for name in runs}, pages={})
  file = read_run_file(tmp_path / "x.gr2")
  assert list(file.runs) == ["naive/seed_0", "naive/seed_1", "relative/seed_0", "relative/seed_1"] and file.about["kind"] == "sweep"
  assert file.choose("naive/seed_1") == "naive/seed_1" and [run.seed for run in file.seeds_of("relative/seed_0")] == [0, 1]
  with pytest.raises(ConfigError, match=r"holds 4 runs; choose one, .*x\.gr2:NAME, of naive/seed_0, naive/seed_1"):
    file.choose("")
  with pytest.raises(ConfigError, match=r"has no run 'naive/seed_7'; choose one"):
    file.choose("naive/seed_7")


def test_half_a_sweep_is_told_apart(tmp_path):
  sweep = make_sweep(tmp_path / "sweep")
  (sweep / "naive" / "seed_1" / "evaluation" / "done.json").unlink()
  runs, unfinished = find_finished(sweep)
  assert list(runs) == ["naive/seed_0", "relative/seed_0", "relative/seed_1"]
  assert unfinished == {"naive/seed_1": "its evaluation is not finished"}
  with pytest.raises(RunError, match="neither a run nor a sweep"):
    find_finished(tmp_path / "nowhere")


def test_a_damaged_run_is_not_shared(file, tmp_path):
  _, run = file
  (run.directory / "evaluation" / "per_slate.npz").write_bytes(b"half")
  with pytest.raises(RunError, match=r"per_slate\.npz is damaged"):
    write_run_file(tmp_path / "y.gr2", {"run": run}, {"run": {}}, pages={})
  assert not (tmp_path / "y.gr2").exists()


def test_a_file_does_not_change_with_where_its_run_lies(file, tmp_path):
  path, run = file
  shutil.copytree(run.directory, tmp_path / "moved")
  write_run_file(tmp_path / "y.gr2", {"run": Run.open(tmp_path / "moved")}, {"run": {"seed": 3}}, pages={})
  assert (tmp_path / "y.gr2").read_bytes() == path.read_bytes()


def test_which_paths_mean_such_a_file():
  assert split_path("a/b.gr2") == ("a/b.gr2", "") and split_path("b.gr2:naive/seed_0") == ("b.gr2", "naive/seed_0")
  assert split_path("configs/quickstart.py:tiny") is None and split_path("runs/x.gr2y") is None
