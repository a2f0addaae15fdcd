"""Token losses at a vocabulary of 152,960 take at most a quarter of the memory of the whole softmax."""

import pytest

from experiments.benchmarks import memory


@pytest.mark.slow
def test_peaks_are_at_most_a_quarter():
  ratios = {line["case"]: line["peak_ratio"] for line in memory.run() if "peak_ratio" in line}
  assert set(ratios) == set(memory.CASES) and max(ratios.values()) <= 0.25, ratios
