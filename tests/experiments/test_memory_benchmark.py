"""Token losses at a vocabulary of 152,960 take at most a quarter of the memory of the whole softmax."""

import subprocess
import sys

import numpy as np
import pytest
from small_runs import ROOT

from experiments.benchmarks import memory
from experiments.benchmarks.timing import peak_gb


def test_a_peak_is_of_the_process_itself_not_of_the_one_that_started_it():
  ballast = np.ones(800_000_000, np.uint8)
  code = "from experiments.benchmarks.timing import peak_gb; print(peak_gb())"
  child = float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
  assert 0.01 < child < 0.6 and peak_gb() > ballast.nbytes / 1e9


@pytest.mark.slow
def test_peaks_are_at_most_a_quarter():
  ratios = {line["case"]: line["peak_ratio"] for line in memory.run() if "peak_ratio" in line}
  assert set(ratios) == set(memory.CASES) and max(ratios.values()) <= 0.25, ratios
