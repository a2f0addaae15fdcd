"""Two processes that are really two train like one with as many devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _run(directory, processes):
  """The metrics that the first process of a run wrote, one line a step."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  program = [sys.executable, str(pathlib.Path(__file__).with_name("two_processes.py")), str(port), str(processes)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  running = [subprocess.Popen([*program, str(process), str(directory)], env=environment) for process in range(processes)]
  assert [process.wait(timeout=900) for process in running] == [0] * processes
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
  one, two = _run(tmp_path / "one", 1), _run(tmp_path / "two", 2)
  # The second process has its share after one round, the first needs another: they go on together, and all metrics add up.
  assert [line["step"] for line in two] == [1, 2]
  assert (two[0]["rounds"], two[0]["kept_fraction"], two[0]["filled_fraction"], two[0]["surplus_fraction"]) == (2, 0.75, 1, 0.5)
  for line, expected in zip(two, one, strict=True):
    assert line | {"time": 0} == pytest.approx(expected | {"time": 0}, rel=1e-4, abs=1e-6)
