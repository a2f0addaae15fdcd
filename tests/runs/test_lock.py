"""One process a run directory; a lock ends with its process."""

import os
import subprocess
import sys

import pytest

from gr2_jax.runs.lock import locked
from gr2_jax.runs.run import RunError

# Takes the lock, says so, and waits.
HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, b"process 7 on elsewhere")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_in_use_is_refused_naming_its_process_and_free_afterwards(tmp_path):
  folder = tmp_path / "run"
  with locked(folder):
    assert f"process {os.getpid()} on " in (folder / "lock").read_text()
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"), locked(folder):
      pass
  assert list(folder.iterdir()) == []
  with locked(folder):
    pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
  holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert holder.stdout.readline() == b"held\n"
  with pytest.raises(RunError, match="process 7 on elsewhere"), locked(tmp_path):
    pass
  holder.kill()
  holder.communicate()
  assert (tmp_path / "lock").exists()
  with locked(tmp_path):
    assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()
  assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks_holds_nobody_up(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError("no locks here")

  monkeypatch.setattr("fcntl.flock", refuse)
  with locked(tmp_path), locked(tmp_path):
    pass
