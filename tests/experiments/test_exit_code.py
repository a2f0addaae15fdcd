"""What the disk, the permissions or the installation lack ends a program in one line; a fault of the code keeps its traceback."""

import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import logging
from small_runs import ROOT, tiny_config

from experiments.exit_code import exit_code_of
from experiments.pipeline import execute
from gr2_jax.files import check_writable, replacing
from gr2_jax.runs.stages import Stage
from gr2_jax.training.writers import MetricWriter


def wrapped(number):
  """As TensorStore tells of it, through Orbax."""
  try:
    raise ValueError(f'RESOURCE_EXHAUSTED: Error writing "a/0": Failed to write 15 bytes: {os.strerror(number)} [os_error_code={number}]')
  except ValueError as error:
    raise RuntimeError("the save failed") from error


def direct(number):
  raise OSError(number, os.strerror(number), "/somewhere/file")


def in_a_group(number):
  raise ExceptionGroup("several", [KeyError("a"), OSError(number, os.strerror(number))])


@pytest.mark.parametrize("fail", [direct, wrapped, in_a_group])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_system_error_is_one_line_with_its_place(fail, number, capsys):
  assert exit_code_of(lambda: fail(number), "runs/mine") == 1
  told = capsys.readouterr().err
  place = "/somewhere/file" if fail is direct else "runs/mine"
  assert told.startswith(f"ERROR: {place}: {os.strerror(number)}; ") and told.count("\n") == 1


def missing_library():
  raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")


def missing_package():
  raise ModuleNotFoundError("No module named 'lightgbm'", name="lightgbm")


@pytest.mark.parametrize(("fail", "said"), [(missing_library, "apt-get install libgomp1"), (missing_package, "lightgbm")])
def test_what_the_installation_lacks_is_one_line(fail, said, capsys):
  assert exit_code_of(fail) == 1
  told = capsys.readouterr().err
  assert told.startswith("ERROR: ") and said in told and told.count("\n") == 1


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(errno.ENOENT, "gone", "x"),
    ValueError("3 requested"),
    KeyError("a"),
    ModuleNotFoundError("No module named 'gr2_jax.x'", name="gr2_jax.x"),
  ],
)
def test_a_fault_of_the_code_keeps_its_traceback(error):
  def program():
    raise error

  with pytest.raises(type(error)):
    exit_code_of(program)


FULL = pathlib.Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize(
  "write",
  [
    lambda: np.zeros(100_000).tofile(FULL),
    lambda: FULL.write_text("x" * 100_000),
    lambda: np.savez_compressed(FULL.open("wb"), a=np.zeros(9)),
  ],
)
def test_a_full_disk_by_whatever_writes(write, capsys):
  assert exit_code_of(write, "runs/mine") == 1
  assert os.strerror(errno.ENOSPC) in capsys.readouterr().err


CHECKPOINT = """
import resource, sys
import numpy as np
from experiments.exit_code import exit_code_of
from gr2_jax.training.checkpoints import Checkpointer
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
state = {name: np.random.default_rng(0).random(50_000) for name in map(str, range(20))}
sys.exit(exit_code_of(lambda: Checkpointer(sys.argv[1]).save(1, state, {}), sys.argv[1]))
"""


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
  done = subprocess.run([sys.executable, "-c", CHECKPOINT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 1
  # TensorStore's threads may still print that the loop is closed when the interpreter ends, past any hook.
  echo = (" ", "Traceback", "RuntimeError: Event loop is closed")
  told = [line for line in done.stderr.splitlines() if not line.startswith(echo)]
  assert len(told) == 1, done.stderr
  assert told[0].startswith(f"ERROR: {tmp_path}: {os.strerror(errno.EFBIG)}; ")


def test_a_write_that_fails_names_its_file(tmp_path, capsys):
  def program():
    with replacing(tmp_path / "a.json"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  assert exit_code_of(program) == 1
  assert f"{tmp_path / 'a.json'}: " in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def full_disk(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_stage_on_a_full_disk_is_not_done_and_goes_on_when_there_is_room(tmp_path, monkeypatch, capsys):
  def run(context):
    with context.metric_writer("data") as writer:
      writer.write(1, {"loss": 1.0})
      context.path("out.txt").write_text("whole")

  def go():
    return execute(tiny_config(), str(tmp_path / "run"), None, [], [Stage("data", run, reads=("seed",))])

  with monkeypatch.context() as patch:
    patch.setattr(MetricWriter, "write", full_disk)
    assert go() == 1
  told = capsys.readouterr().err
  assert told.startswith(f"ERROR: {tmp_path / 'run'}: ") and told.count("\n") == 1
  assert not (tmp_path / "run" / "data" / "done.json").exists()
  assert go() == 0
  assert (tmp_path / "run" / "data" / "out.txt").read_text() == "whole"


def test_what_threads_of_orbax_raise_is_not_told_before(caplog):
  logger = logging.get_absl_logger()
  exit_code_of(lambda: None)
  try:
    raise OSError("disk")
  except OSError:
    logger.exception("[process=%d] _SignalingThread.run() raised an exception: %s", 0, "disk")
    logger.exception("Failed to remove %s", "x")
  assert [record.msg for record in caplog.records] == ["Failed to remove %s"]


def test_a_folder_that_cannot_be_written_is_found_at_the_start(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="file") as caught:
    check_writable(tmp_path / "file" / "folder")
  assert caught.value.filename == str(tmp_path / "file" / "folder")
  check_writable(tmp_path / "new" / "folder")
  assert not list((tmp_path / "new" / "folder").iterdir())
