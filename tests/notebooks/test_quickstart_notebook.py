"""The notebook runs on a finished run and shows its table, curves and slates."""

import pathlib

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tiny_run):
  """The cells' outputs as lists of `{mime type: content}`, by cell id; an exception in a cell is one here."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  # Without folders to look for kernels in, `python3` is the interpreter that runs the tests.
  manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
  client = NotebookClient(notebook, km=manager, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("GR2_RUN", str(tiny_run))
    patch.setenv("PYTHONPATH", str(ROOT))
    client.execute()
  return {cell.id: [o.get("data", {}) for o in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"}


def html(outputs):
  return "".join(o.get("text/html", "") for o in outputs)


def test_the_committed_notebook_is_valid_and_holds_no_outputs():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
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
