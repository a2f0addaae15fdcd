"""Programs run on their own, each forked from a process that has loaded what all of them load: to import it takes three seconds."""

import gc
import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["experiments.check", "experiments.pipeline", "experiments.repeat", "gr2_jax.serving.measure"])


def run_program(name, *flags, timeout=1800):
  """(exit code, what it printed, what it printed as errors) of `python -m experiments.NAME FLAGS`, in the environment of the first call."""
  with tempfile.TemporaryDirectory() as folder:
    out, error = pathlib.Path(folder, "out"), pathlib.Path(folder, "error")
    process = _SERVER.Process(target=_run, args=(name, [str(flag) for flag in flags], str(out), str(error)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
      process.kill()
      process.join()
      raise TimeoutError(f"experiments.{name} ran for more than {timeout} s: {error.read_text()[-2000:]}")
    return process.exitcode, out.read_text(), error.read_text()


def _run(name, flags, out, error):
  for stream, path in ((1, out), (2, error)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
  os.chdir(ROOT)
  gc.freeze()
  gc.set_threshold(100_000, 20, 20)
  sys.argv = [name, *flags]
  runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
