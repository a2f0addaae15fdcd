"""The house rules that a machine can check: who imports whom, types, and the style of every file."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(command, where=ROOT):
  done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)
  return done.returncode, done.stdout + done.stderr


def lint_imports(where):
  code = "import sys; from importlinter.cli import lint_imports_command as lint; sys.path.insert(0, '.'); lint(['--no-cache'])"
  return run([sys.executable, "-c", code], where)


def test_a_package_imports_only_from_packages_below_it():
  code, told = lint_imports(ROOT)
  assert code == 0, told
  assert "1 kept, 0 broken" in told


def test_the_layers_contract_sees_a_wrong_import(tmp_path):
  for name in ("gr2_jax", "experiments"):
    shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  with (tmp_path / "gr2_jax" / "data" / "schema.py").open("a") as file:
    file.write("\nfrom gr2_jax.models import config\n")
  code, told = lint_imports(tmp_path)
  assert code == 1
  assert "gr2_jax.data is not allowed to import gr2_jax.models" in told


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
  code, told = run([sys.executable, "-m", "ruff", *command, "--no-cache", "."])
  assert code == 0, told


def test_types():
  code, told = run([sys.executable, "-m", "mypy"])
  assert code == 0, told


def test_files_stay_readable():
  long = {
    str(path.relative_to(ROOT)): lines
    for folder in ("gr2_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
    if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
  }
  assert not long
