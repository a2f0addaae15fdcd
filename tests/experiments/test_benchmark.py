"""The benchmark program: its suites, its errors, and parity with the peers at hand."""

import pytest

from experiments import benchmark
from experiments.benchmarks import ranking
from experiments.benchmarks.timing import time_interleaved


def test_an_unknown_suite_names_those_there_are(capsys):
  with pytest.raises(SystemExit, match="1"):
    benchmark.app.run(benchmark.main, ["benchmark", "--suite=rankings"])
  assert "'rankings' is none of" in (error := capsys.readouterr().err) and "ranking" in error.split("none of")[1]


def test_runs_are_interleaved():
  calls = []
  medians = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
  assert calls == ["a", "b"] * 3 and set(medians) == {"a", "b"}


def test_ranking_agrees_with_its_peers_before_it_times_them(monkeypatch):
  lines = {line["peer"]: line for line in ranking._compare(30, 9)}
  assert lines["gr2_jax"]["times_ours"] == 1.0 and lines["rax"]["median_ms"] > 0
  monkeypatch.setattr(ranking, "_make_rax", lambda scores, labels: ranking._Peer(lambda: scores[:3, :] * 0 + 2))
  with pytest.raises(AssertionError, match="rax"):
    next(ranking._compare(30, 9))
