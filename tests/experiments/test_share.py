"""A run is shared as a file and repeated from it: its config is what it was, what differs is told before training, agreement at the end."""

import json
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from finished_runs import make_finished_run
from small_runs import ROOT, final_state

from experiments.exchange import compare, share
from experiments.flags import check_overrides, load_config
from experiments.pipeline import execute
from experiments.repeat import Repetition
from gr2_jax.errors import ConfigError, UserError
from gr2_jax.reports.side_by_side import compare_sides, read_sides
from gr2_jax.runs.archive import read_archive, write_archive
from gr2_jax.runs.run_file import FORMAT, read_run_file
from gr2_jax.runs.stages import Stage
from gr2_jax.runs.versions import compute_versions
from gr2_jax.training.progress import Progress

# Of the version in its manifest; it stays as it is, so that files that were sent once can be read as long as their format is.
KEPT = ROOT / "tests" / "golden" / "tiny_run.gr2"


@pytest.fixture
def shared(tmp_path):
  """A file of a run made by hand, on this code and machine."""
  make_finished_run(tmp_path / "run", 3, versions=compute_versions() | {"git_tree": "clean"})
  assert share(str(tmp_path / "run"), str(tmp_path / "x.gr2")) == 0
  return tmp_path / "x.gr2"


def rewrite(path, member, change):
  """The file again with a JSON member that `change` has changed."""
  with read_archive(path) as archive:
    about, members = archive.about, {name: archive.read(name) for name in archive.names}
    value = archive.read_json(member)
  change(value)
  about.pop("members")
  write_archive(path, members | {member: json.dumps(value).encode()}, about)


# What is shared.


def test_share_says_how_to_repeat_and_stores_no_weights(shared, tmp_path, capsys):
  assert share(str(tmp_path / "run"), str(tmp_path / "y.gr2")) == 0
  told = capsys.readouterr().out
  assert f"{tmp_path / 'y.gr2'}: 1 run, " in told and f"--config={tmp_path / 'y.gr2'} --workdir=NEW" in told
  with zipfile.ZipFile(shared) as archive:
    names = archive.namelist()
    assert json.loads(archive.read("run/changes.json")) == {"name": "by hand", "seed": 3}
  assert {"run/config.json", "run/results.json", "run/per_slate.npz", "run/card.md", "run/metrics/rl.jsonl"} < set(names)
  assert not any("policy" in name or "checkpoint" in name for name in names)


def test_half_a_sweep_is_refused_and_a_whole_one_shared(tmp_path, capsys):
  sweep = tmp_path / "sweep"
  for variant in ("naive", "relative"):
    make_finished_run(sweep / variant / "seed_0", 0)
  assert share(str(sweep), str(tmp_path / "x.gr2")) == 1
  assert "sweep.json: it is not there" in capsys.readouterr().err
  (sweep / "sweep.json").write_text(json.dumps({"variants": {name: {"seeds": [0]} for name in ("naive", "relative", "eq7")}}))
  (sweep / "sweep.md").write_text("# table\n")
  (sweep / "naive" / "seed_0" / "evaluation" / "done.json").unlink()
  assert share(str(sweep), str(tmp_path / "x.gr2")) == 1
  assert "is not finished (naive/seed_0: its evaluation is not finished; eq7/seed_0: it is not there)" in capsys.readouterr().err
  assert not (tmp_path / "x.gr2").exists()
  (sweep / "sweep.json").write_text(json.dumps({"variants": {name: {"seeds": [0]} for name in ("naive", "relative")}}))
  assert share(str(sweep / "relative" / "seed_0"), str(tmp_path / "one.gr2")) == 0
  shutil.copytree(sweep / "relative" / "seed_0", sweep / "naive" / "seed_0", dirs_exist_ok=True)
  assert share(str(sweep), str(tmp_path / "x.gr2")) == 0
  assert "2 runs" in capsys.readouterr().out and list(read_run_file(tmp_path / "x.gr2").runs) == ["naive/seed_0", "relative/seed_0"]
  with pytest.raises(ConfigError, match=r"holds 2 runs; choose one, .*x\.gr2:NAME, of naive/seed_0, relative/seed_0"):
    load_config(str(tmp_path / "x.gr2"))
  assert load_config(f"{tmp_path / 'x.gr2'}:naive/seed_0").seed == 0


def test_wrong_flags_write_nothing(shared, tmp_path, capsys):
  cases = {
    (None, None): "--run and --to are needed",
    (str(tmp_path / "run"), str(tmp_path / "x.zip")): "does not end in .gr2",
    (str(tmp_path / "run"), str(shared)): "is there already; remove it, or name another file",
    (str(tmp_path / "nowhere"), str(tmp_path / "y.gr2")): "neither a run nor a sweep",
  }
  before = shared.read_bytes()
  for flags, message in cases.items():
    assert share(*flags) == 1
    assert message in capsys.readouterr().err
  assert shared.read_bytes() == before and not (tmp_path / "y.gr2").exists() and not (tmp_path / "x.zip").exists()


def test_the_policy_travels_as_arrays_that_need_no_jax(scored_run, tmp_path):
  assert share(str(scored_run), str(tmp_path / "x.gr2"), with_policy=True) == 0
  with zipfile.ZipFile(tmp_path / "x.gr2") as archive:
    about = json.loads(archive.read("manifest.json"))["policy"]
    with archive.open("policy/params.npz") as file, np.load(file, allow_pickle=False) as arrays:
      params = dict(arrays)
    names = {name for name in archive.namelist() if name.startswith("policy/")}
    assert archive.read("policy/sentencepiece.model") == (scored_run / "tokenize" / "vocabulary" / "sentencepiece.model").read_bytes()
  expected = {"params.npz", "sentencepiece.model", "vocabulary.json", "sids.npz", "codes.npz", "vectors.npy"}
  assert names == {f"policy/{name}" for name in expected} and about["form"] == "scored"
  assert {path: (tuple(of["shape"]), of["dtype"]) for path, of in about["parameters"].items()} == {
    path: (array.shape, str(array.dtype)) for path, array in params.items()
  }
  state = final_state(scored_run, about["stage"])["params"]
  for path, array in params.items():
    trained = state
    for part in path.split("/"):
      trained = trained[part]
    assert np.array_equal(array, trained), path


# What is repeated.


def test_a_config_comes_back_with_its_types_and_can_be_changed(shared):
  config, made = load_config(str(shared)), load_config(f"{ROOT / 'configs' / 'quickstart.py'}:tiny")
  assert config.is_locked and config.seed == 3
  assert {key: type(value) for key, value in config.prompt.items()} == {key: type(value) for key, value in made.prompt.items()}
  check_overrides(config, [("rl.steps", "7"), ("evaluation.max_slates", "5"), ("prompt.hints", "()")])
  with pytest.raises(ConfigError, match=r"--config\.rl\.stepz: config\.rl has no key 'stepz'; did you mean steps"):
    check_overrides(config, [("rl.stepz", "7")])


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda config: config["rl"].update(stepz=1), r"config\.rl\.stepz is no setting of this version; use the version that made it"),
    (lambda config: config["rl"].pop("steps"), r"config\.rl\.steps is missing"),
    (lambda config: config["rl"].update(steps="__import__('os').abort()"), r"config\.rl\.steps: .* is not of the setting's type"),
    (lambda config: config.update(rl=3), r"config\.rl is no setting of this version"),
  ],
)
def test_a_config_that_does_not_fit(shared, change, told):
  rewrite(shared, "run/config.json", change)
  with pytest.raises(UserError, match=told) as refused:
    load_config(str(shared))
  assert str(shared) in str(refused.value)


def test_numbers_out_of_range_are_found_by_the_records_before_anything_is_written(shared, in_process, tmp_path, capsys):
  from experiments.check import check_values

  rewrite(shared, "run/config.json", lambda config: config["rl"].update(steps=10**12, group=-5))
  with in_process():
    code = execute(load_config(str(shared)), str(tmp_path / "new"), None, [], check=check_values, repeats=Repetition(str(shared)))
  told = capsys.readouterr().err
  assert code == 1 and "--config.rl.steps: 1000000000000 does not fit 32 bits" in told and "--config.rl.group: -5 must be" in told
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("key", "value"),
  [("rl.reward.fn", "os:system"), ("compress.rewriter.chat.url", "http://127.0.0.1:9/")],
)
def test_code_and_addresses_that_a_file_names_must_be_given_too(shared, key, value):
  def name(config):
    *path, last = key.split(".")
    for part in path:
      config = config[part]
    config[last] = value

  rewrite(shared, "run/config.json", name)
  load_config(str(shared))
  with pytest.raises(ConfigError, match=rf"names something outside of itself: config\.{key} is '{value}'; .* add --config\.{key}={value}"):
    Repetition(str(shared)).check()
  Repetition(str(shared), [key]).check()


def differences(shared, *given, **changes):
  config = load_config(str(shared))
  with config.unlocked():
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return Repetition(str(shared), given).find_differences(config)


def test_what_differs_is_told_by_kind(shared, capsys):
  found = differences(shared)
  assert not (found["configuration"] or found["data"] or found["versions"] or found["machine"])
  found = differences(shared, rl__steps=7, name="another", wandb_project="mine")
  assert found["configuration"][0].endswith(" -> 7")
  assert len(found["configuration"]) == 1, "what no stage reads decides nothing"
  rewrite(shared, "run/versions.json", lambda versions: versions.update(jax="0.9", device_kind="TPU v5", git_commit="a" * 40))
  found = differences(shared)
  assert found["versions"] == [f'jax: "0.9" -> "{compute_versions()["jax"]}"']
  assert any(line.startswith('device_kind: "TPU v5" -> ') for line in found["machine"])
  assert any(line.startswith('git_commit: "aaaa') for line in found["code"])
  Repetition(str(shared)).tell(load_config(str(shared)), Progress())
  told = capsys.readouterr().out
  assert f"repeats   {shared}, run" in told and 'differs   versions: jax: "0.9" -> ' in told and "expected bit for bit" not in told


def test_data_that_are_gone_changed_or_elsewhere(tmp_path, dataset):
  from gr2_jax.runs.fingerprints import hash_path

  make_finished_run(tmp_path / "run", 3, changes={"data.source": str(dataset)})
  done = json.loads((tmp_path / "run" / "data" / "done.json").read_text())
  done["reads"]["files"] = {"data.source": hash_path(dataset)}
  (tmp_path / "run" / "data" / "done.json").write_text(json.dumps(done))
  file = tmp_path / "x.gr2"
  assert share(str(tmp_path / "run"), str(file)) == 0
  assert differences(file)["data"] == []
  dataset.rename(tmp_path / "moved")
  with pytest.raises(ConfigError, match=rf"--config\.data\.source: {dataset}, which the run of {file} read, is not here; give --config"):
    differences(file)
  found = differences(file, "data.source", data__source=str(tmp_path / "moved"))
  assert found["data"] == found["configuration"] == []
  (tmp_path / "moved" / "more.txt").write_text("x")
  found = differences(file, "data.source", data__source=str(tmp_path / "moved"))
  assert "data.source: " in found["data"][0] and "has another content" in found["data"][0] and found["configuration"] == []


@pytest.fixture
def repeat(shared, tmp_path, in_process, monkeypatch):
  """`repeat(file=shared, stages=...)`: the program on stages that put down what a run made by hand has; returns the new run's folder."""
  monkeypatch.setattr("experiments.repeat.load_stages", lambda: stages)
  order = []

  def data(context):
    shutil.copy(tmp_path / "run" / "data" / "items.jsonl.gz", context.path("items.jsonl.gz"))

  def evaluation(context):
    order.append("trained")
    for name in ("results.json", "per_slate.npz"):
      shutil.copy(tmp_path / "run" / "evaluation" / name, context.path(name))

  stages = (Stage("data", data, reads=("seed", "data")), Stage("evaluation", evaluation, reads=("seed",), inputs=("data",)))

  def go(workdir, file=shared, **options):
    with in_process():
      return execute(load_config(str(file)), str(tmp_path / workdir), None, [], stages, repeats=Repetition(str(file)), **options)

  go.order = order
  return go


def test_a_repetition_that_gives_the_same_says_so_where_the_run_lies(repeat, tmp_path, capsys):
  assert repeat("new") == 0
  told = capsys.readouterr().out
  assert "Repeated bit for bit: all 24 metrics of 3 rankers are equal on each of 40 test slates." in told
  found = json.loads((tmp_path / "new" / "evaluation" / "repetition.json").read_text())
  assert found["counts"] == {"equal": 24, "agrees": 0, "differs": 0, "untold": 0} and found["run"] == "run"
  assert "Repeated bit for bit" in (tmp_path / "new" / "evaluation" / "repetition.md").read_text(encoding="utf-8")
  # The same command again finds all done, and says the same.
  assert repeat("new") == 0
  assert "Repeated bit for bit" in capsys.readouterr().out


def test_other_data_are_told_before_training_and_other_results_at_the_end(repeat, tmp_path, capsys, monkeypatch):
  shutil.rmtree(tmp_path / "run")
  make_finished_run(tmp_path / "run", 5, skill=9.0)
  monkeypatch.setattr(Progress, "note", lambda self, text: repeat.order.append(text))
  assert repeat("new") == 0
  told = repeat.order
  assert told.index("differs   data: data/items.jsonl.gz is not what it was there") < told.index("trained")
  assert any("DOES NOT AGREE in " in line and "the test slates are not the same" in line for line in told[told.index("trained") :])
  found = json.loads((tmp_path / "new" / "evaluation" / "repetition.json").read_text())
  assert found["differences"]["data"] == ["data/items.jsonl.gz is not what it was there"] and found["counts"]["differs"]
  assert not found["expected_equal"]


# A file that was kept.


def test_a_kept_file_is_read_planned_and_compared(tmp_path, capsys):
  file = read_run_file(KEPT)
  assert file.about["format"] <= FORMAT and KEPT.stat().st_size < 60_000
  config = load_config(str(KEPT))
  assert config.name == "quickstart" and config.rl.steps == 2 and isinstance(config.prompt.hints, tuple)
  repetition = Repetition(str(KEPT))
  repetition.check()
  found = repetition.tell(config, Progress())
  assert found["configuration"] == [], "a setting that came later is given the value by which older runs did what they did"
  sides, _ = read_sides([str(KEPT), str(KEPT)])
  compared = compare_sides(sides, resamples=50)
  assert compared["pairs"][0]["reason"] is None and compared["config"] == {}
  assert all(of["paired"]["mrr"]["delta"] == 0 for lines in compared["comparisons"].values() for of in lines)
  make_finished_run(tmp_path / "run")
  assert compare([str(KEPT), str(tmp_path / "run")], str(tmp_path / "page")) == 0
  assert "tested on different slates" in capsys.readouterr().out and (tmp_path / "page" / "compare.md").exists()


@pytest.mark.slow
def test_a_tiny_run_is_repeated_bit_for_bit(scored_run, program_environment, tmp_path):
  file, new = tmp_path / "tiny.gr2", tmp_path / "new"
  assert share(str(scored_run), str(file)) == 0
  command = [sys.executable, "-m", "experiments.run", f"--config={file}", f"--workdir={new}"]
  done = subprocess.run(command, cwd=ROOT, env=program_environment, capture_output=True, text=True, timeout=1200)
  assert done.returncode == 0, done.stderr[-4000:]
  assert "Repeated bit for bit" in " ".join(done.stdout.split())
  found = json.loads((new / "evaluation" / "repetition.json").read_text())
  assert found["same_slates"] and sum(found["counts"].values()) == found["counts"]["equal"] > 0
  assert not any(lines for kind, lines in found["differences"].items() if kind != "code"), "a tree with changes is of unknown code"
  for stage in ("rl", "direct"):
    states = [final_state(run, stage)["params"] for run in (scored_run, new)]
    jax.tree.map(np.testing.assert_array_equal, *states)
