"""Every notebook runs, on a finished run or sweep and where there is none, and is in git without what it showed."""

import json
import os
import pathlib
import subprocess
import sys

import nbformat
import pytest

from experiments.exchange import share

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SWEEPS = {path.stem: path.stem[3:] for path in NOTEBOOKS if (ROOT / "configs" / "ablations" / f"{path.stem[3:]}.py").exists()}


def texts(outputs):
  """What a cell shows as text, Markdown or HTML."""
  return "".join(output.get(kind, "") for output in outputs for kind in ("text/markdown", "text/html"))


def pictures(executed):
  return [id for id, outputs in executed.items() if any("image/png" in output for output in outputs)]


# As they are in git.


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_valid_and_holds_no_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(not cell.outputs and cell.execution_count is None for cell in code)
  assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_all_notebooks_install_themselves_by_the_same_first_cell():
  cells = {path: next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code") for path in NOTEBOOKS}
  assert len({cell.source for cell in cells.values()}) == 1
  assert all(cell.id == "install" for cell in cells.values())


def test_notebooks_are_numbered_and_each_sweep_has_the_name_of_its_config():
  assert [path.stem[:3] for path in NOTEBOOKS] == [f"{number:02d}_" for number in range(1, len(NOTEBOOKS) + 1)]
  assert len(SWEEPS) == len(NOTEBOOKS) - 2  # the quickstart reads a run, the own reward none


# Over what is finished.


@pytest.fixture(scope="module")
def quickstart(run_notebook, scored_run):
  return run_notebook("01_quickstart", GR2_RUN=scored_run)


def test_the_quickstart_shows_the_policies_with_their_intervals(quickstart):
  table = texts(quickstart["table"])
  for name in ("upstream order", "LambdaMART", "SFT policy", "RL policy", "oracle", "paired 95 % interval", "hacking monitors"):
    assert name in table, name
  assert "+18.7 %" in texts(quickstart["papers"]) and "The RL policy is " in texts(quickstart["meaning"])
  assert pictures(quickstart) == ["orders", "losses", "rl", "top1"]
  (described,) = quickstart["load"]  # and nothing ran
  assert "synthetic market, seed 0, " in described["text/markdown"] and "jax " in described["text/markdown"]


def test_three_slates_are_shown_with_their_targets_and_answers(quickstart):
  slates = texts(quickstart["slates"])
  assert slates.count("before: upstream order") == 3
  assert slates.count("Answer: ") == 3
  assert slates.count("★") >= 3


def test_a_file_shows_what_its_run_shows_but_single_answers(quickstart, run_notebook, scored_run, tmp_path):
  file = tmp_path / "quickstart.gr2"
  assert share(str(scored_run), str(file)) == 0
  executed = run_notebook("01_quickstart", GR2_RUN=file)
  for cell in ("load", "table", "papers", "meaning"):
    assert texts(executed[cell]) == texts(quickstart[cell]), cell
  assert pictures(executed) == pictures(quickstart)
  assert f"{file.name} holds no answers to single slates" in " ".join(texts(executed["slates"]).split())


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_read(name, run_notebook, finished_sweep):
  folder = finished_sweep(SWEEPS[name])
  executed = run_notebook(name, GR2_SWEEP=folder)
  check_sweep(executed, json.loads((folder / "sweep.json").read_text(encoding="utf-8")))


def test_the_file_of_a_sweep_shows_what_the_sweep_shows(run_notebook, finished_sweep, tmp_path):
  folder, file = finished_sweep("prior"), tmp_path / "prior.gr2"
  assert share(str(folder), str(file)) == 0
  executed = run_notebook("03_prior", GR2_SWEEP=file)
  check_sweep(executed, json.loads((folder / "sweep.json").read_text(encoding="utf-8")))


def check_sweep(executed, sweep):
  table = texts(executed["table"])
  assert "### Ranking" in table and all(title in table for title in sweep["comparisons"])
  assert "| figure | papers |" in texts(executed["papers"]) or "No paper gives" in texts(executed["papers"])
  assert texts(executed["meaning"]).startswith("- ")
  assert "curves" in pictures(executed)


def test_an_own_reward_is_trained_by_without_a_run(run_notebook):
  executed = run_notebook("09_own_reward", timeout=600, GR2_STEPS=2)
  assert pictures(executed) == ["curves", "own"]
  assert "how soon: R@1 of sampled answers goes from" in texts(executed["meaning"])


# Where nothing is finished.


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_a_tiny_sweep_is_read(name, run_notebook, tiny_sweep):
  folder = tiny_sweep(SWEEPS[name])
  check_sweep(run_notebook(name, GR2_SWEEP=folder), json.loads((folder / "sweep.json").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_without_a_sweep_its_tiny_variant_runs(run_notebook, tmp_path):
  executed = run_notebook("07_pruning", timeout=1800, GR2_SWEEP=tmp_path / "pruning")
  check_sweep(executed, json.loads((tmp_path / "pruning_tiny" / "sweep.json").read_text(encoding="utf-8")))


# As they are shown.


@pytest.mark.slow
def test_make_renders_a_notebook_with_its_pictures(scored_run, tmp_path):
  command = ["make", f"--assume-old={sys.prefix}/installed", "notebook", f"VENV={sys.prefix}", "NOTEBOOK=01_quickstart"]
  command += [f"RUN={scored_run}", f"RENDERED={tmp_path}"]
  done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-4000:]
  page = (tmp_path / "01_quickstart.md").read_text(encoding="utf-8")
  assert "git clone" not in page and "+18.7 %" in page and str(scored_run) not in page
  drawn = sorted(path.name for path in (tmp_path / "01_quickstart_files").iterdir())
  assert len(drawn) == 4 and all(name in page for name in drawn)
