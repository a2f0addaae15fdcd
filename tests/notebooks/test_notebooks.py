"""The notebook runs on a finished run and shows its table, curves and slates."""

import pathlib

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module", params=["tiny_run", "scored_run"])
def executed(request, run_notebook):
  return run_notebook("quickstart", GR2_RUN=request.getfixturevalue(request.param))


def html(outputs):
  return "".join(o.get("text/html", "") for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_valid_and_holds_no_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_the_table_has_the_policy_and_its_intervals(executed):
  table = html(executed["table"])
  for name in ("upstream order", "LambdaMART", "SFT policy", "RL policy", "oracle", "paired 95 % interval", "hacking monitors"):
    assert name in table, name


@pytest.mark.parametrize("cell", ["orders", "losses", "rl"])
def test_curves_are_drawn(executed, cell):
  assert any("image/png" in output for output in executed[cell])


def test_three_slates_are_shown_with_their_targets_and_answers(executed):
  slates = html(executed["slates"])
  assert slates.count("before: upstream order") == 3
  assert slates.count("Answer: ") == 3
  assert slates.count("★") >= 3


@pytest.mark.slow
def test_reinforcement_learning_runs_without_a_run(run_notebook):
  executed = run_notebook("reinforcement_learning", GR2_STEPS=2)
  assert any("image/png" in output for output in executed["curves"])
