"""What a program can do is told at once: `--help` loads neither JAX nor a config."""

import subprocess
import sys

import pytest
from small_runs import ROOT

from experiments import flags
from gr2_jax.compression.rules import VARIANTS
from gr2_jax.serving.request import MODES

PROGRAMS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "\n  app.run(" in path.read_text(encoding="utf-8"))

HELP = """
import runpy, sys
sys.argv = ["program", *sys.argv[2:]]
try:
  runpy.run_module("experiments.{program}", run_name="__main__")
except SystemExit:
  heavy = {"jax", "flax", "orbax", "grain", "scipy", "sklearn", "tensorflow_datasets", "matplotlib", "lightgbm"} & set(sys.modules)
  assert not heavy, heavy
"""


def told(program, *given):
  code = HELP.replace("{program}", program)
  done = subprocess.run([sys.executable, "-c", code, program, *given, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy(program):
  assert "flags:" in told(program)


@pytest.mark.parametrize("program", ["run", "sweep"])
def test_help_lists_all_flags_and_reads_no_config(program):
  text = told(program, "--config=configs/written.py:tiny", "--config.rl.steps=3")
  for flag in ("--config:", "--overrides:", "--stages:", "--workdir:"):
    assert flag in text, text


def test_what_flags_may_name_is_what_there_is():
  assert (flags.MODES, flags.COMPRESSORS) == (MODES, VARIANTS)
  assert {"run", "sweep", "rerank", "serve", "latency", "card", "benchmark"} <= set(PROGRAMS)
