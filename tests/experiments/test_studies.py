"""A notebook opens what is finished, or its file, and where nothing is, runs the tiny variant once; what is half done is told."""

import json

import pytest
from finished_runs import make_finished_run

from experiments import pipeline, studies, variants
from experiments.exchange import share
from gr2_jax.errors import UserError
from gr2_jax.runs.run import RunError

RUN, SWEEP = "configs/quickstart.py", "configs/ablations/pruning.py"


def finish_sweep(folder, variant="full", seed=0):
  """A sweep of one run made by hand."""
  make_finished_run(folder / variant / f"seed_{seed}", seed)
  table = {"dataset": "toy", "variants": {variant: {"seeds": [seed]}}, "comparisons": {}, "shares": []}
  (folder / "sweep.json").write_text(json.dumps(table))
  (folder / "sweep.md").write_text("# table\n")
  return folder


@pytest.fixture
def asked(monkeypatch):
  """What the two programs were asked to run; they leave what a finished run and sweep have."""
  calls = []

  def run(config, workdir, stages, command, check):
    calls.append((config.name, config.rl.steps, command))
    make_finished_run(studies.pathlib.Path(workdir))
    return 0

  def sweep(path, workdir, command, seeds):
    calls.append((path.rpartition("/")[2], seeds, command))
    finish_sweep(studies.pathlib.Path(workdir))
    return 0

  monkeypatch.setattr(pipeline, "execute", run)
  monkeypatch.setattr(variants, "execute", sweep)
  return calls


def test_what_is_finished_is_opened(asked, tmp_path):
  make_finished_run(tmp_path / "run", 3)
  finish_sweep(tmp_path / "sweep")
  assert studies.open_run(tmp_path / "run", RUN).record.seed == 3
  assert list(studies.open_sweep(str(tmp_path / "sweep"), SWEEP).curves()) == ["full"]
  assert not asked


def test_a_file_is_opened_in_place_of_a_folder(asked, tmp_path):
  run, sweep = tmp_path / "run.gr2", tmp_path / "files" / "sweep.gr2"
  sweep.parent.mkdir()
  assert share(str(make_finished_run(tmp_path / "run", 3)), str(run)) == 0
  assert share(str(finish_sweep(tmp_path / "sweep")), str(sweep)) == 0
  study = studies.open_run(run, RUN)
  assert study.record.seed == 3 and study.folder is None and [line["step"] for line in study.curve("rl")] == [1, 2, 3, 4]
  assert studies.open_run(f"{sweep}:full/seed_0", RUN).record.seed == 0
  opened = [studies.open_sweep(path, SWEEP) for path in (sweep, sweep.parent, [sweep])]
  assert all(of.table["variants"] == {"full": {"seeds": [0]}} and len(of.curves()["full"][0]) == 4 for of in opened)
  assert not asked


def test_a_file_that_is_not_there_or_holds_something_else_is_told_and_nothing_runs(asked, tmp_path):
  with pytest.raises(UserError, match=r"nowhere\.gr2: there is no such file"):
    studies.open_run(tmp_path / "nowhere.gr2", RUN)
  assert share(str(make_finished_run(tmp_path / "run")), str(tmp_path / "run.gr2")) == 0
  with pytest.raises(UserError, match=r"run\.gr2 holds a single run and no sweep; give the file of a sweep, or open it as a run"):
    studies.open_sweep(tmp_path / "run.gr2", SWEEP)
  with pytest.raises(UserError, match=r"run is no FILE\.gr2, and only files are pooled"):
    studies.open_sweep([tmp_path / "run.gr2", tmp_path / "run"], SWEEP)
  assert not asked


def test_where_there_is_nothing_the_tiny_variant_runs_once_and_says_so(asked, tmp_path, capsys):
  for _ in range(2):
    assert studies.open_run(tmp_path / "run", RUN).folder == tmp_path / "run_tiny"
    assert studies.open_sweep(tmp_path / "sweep", SWEEP).table["dataset"] == "toy" and (tmp_path / "sweep_tiny").exists()
  (name, steps, command), (path, seeds, of_sweep) = asked
  assert (name, path, seeds) == ("quickstart", "pruning.py:tiny", ["0"]) and steps <= 3
  assert command[:4] == ["python", "-m", "experiments.run", f"--config={RUN}:tiny"] and of_sweep[-1] == "--seeds=0"
  told = capsys.readouterr().out
  assert told.count("There is nothing at") == 2 and told.count("numbers say nothing") == 4


def test_half_a_sweep_is_told_with_the_command_that_finishes_it(asked, tmp_path):
  (tmp_path / "prior" / "teacher").mkdir(parents=True)
  with pytest.raises(RunError, match=r"prior: has no sweep\.json.*experiments\.sweep --config=configs/ablations/pruning\.py"):
    studies.open_sweep(tmp_path / "prior", SWEEP)
  assert not asked


def test_a_tiny_run_that_fails_is_an_error(monkeypatch, tmp_path):
  monkeypatch.setattr(pipeline, "execute", lambda *of, **named: 1)
  with pytest.raises(RunError, match="did not finish"):
    studies.open_run(tmp_path / "run", RUN)
