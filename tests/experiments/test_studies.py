"""A notebook opens what is finished, and where nothing is, runs the tiny variant once; what is half done is told."""

import pytest

from experiments import pipeline, studies, variants
from gr2_jax.runs.run import RunError

RUN, SWEEP = "configs/quickstart.py", "configs/ablations/pruning.py"


@pytest.fixture
def asked(monkeypatch):
  """What the two programs were asked to run; they leave what a finished run and sweep have."""
  calls = []

  def run(config, workdir, stages, command, check):
    calls.append((config.name, config.rl.steps, command))
    finish(workdir, "evaluation/results.json")
    return 0

  def sweep(path, workdir, command, seeds):
    calls.append((path.rpartition("/")[2], seeds, command))
    finish(workdir, "sweep.json")
    return 0

  def finish(workdir, name):
    path = studies.pathlib.Path(workdir) / name
    path.parent.mkdir(parents=True)
    path.touch()

  monkeypatch.setattr(pipeline, "execute", run)
  monkeypatch.setattr(variants, "execute", sweep)
  return calls


def test_what_is_finished_is_opened(asked, tmp_path):
  (tmp_path / "evaluation").mkdir()
  (tmp_path / "evaluation" / "results.json").touch()
  (tmp_path / "sweep.json").touch()
  assert studies.open_run(tmp_path, RUN) == studies.open_sweep(str(tmp_path), SWEEP) == tmp_path
  assert not asked


def test_where_there_is_nothing_the_tiny_variant_runs_once_and_says_so(asked, tmp_path, capsys):
  for _ in range(2):
    assert studies.open_run(tmp_path / "run", RUN) == tmp_path / "run_tiny"
    assert studies.open_sweep(tmp_path / "sweep", SWEEP) == tmp_path / "sweep_tiny"
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
