"""Eight CPU devices for the sharding tests, set before any backend starts; one tiny run of all stages for all who read one."""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def compilations():
  """A list that grows by the name of an event with every program that is compiled."""
  events = []

  def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
  """The directory of a finished run of `configs/quickstart.py:tiny`, made once; read it, never write into it."""
  directory = tmp_path_factory.mktemp("tiny") / "run"
  command = [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py:tiny", f"--workdir={directory}"]
  done = subprocess.run(command, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-4000:]
  return directory
