"""Where a notebook's numbers come from: a finished run or sweep; where nothing is, the config's tiny variant, run there and then."""

import os
import pathlib
from collections.abc import Callable, Sequence

from experiments.flags import load_config
from gr2_jax.runs.run import RunError

_ROOT = pathlib.Path(__file__).parents[1]  # of the configs


def open_run(path: str | os.PathLike[str], config: str) -> pathlib.Path:
  """The directory of a finished run at `path`; where there is nothing, of `config`'s tiny variant at `path`_tiny, run first if need be.

  Raises RunError for what is there and is no finished run, and where the tiny run fails.
  """

  def run(workdir: str, command: Sequence[str]) -> int:
    from experiments.check import check_values  # here, since a finished run needs no JAX
    from experiments.pipeline import execute

    return execute(load_config(_tiny(config)), workdir, None, command, check=check_values)

  return _open(pathlib.Path(path), "evaluation/results.json", "experiments.run", config, run)


def open_sweep(path: str | os.PathLike[str], config: str) -> pathlib.Path:
  """The same for a sweep and its ablation, whose tiny variants run with the seed 0 alone."""

  def run(workdir: str, command: Sequence[str]) -> int:
    from experiments.variants import execute

    return execute(_tiny(config), workdir, [*command, "--seeds=0"], seeds=["0"])

  return _open(pathlib.Path(path), "sweep.json", "experiments.sweep", config, run)


def _tiny(config: str) -> str:
  return f"{_ROOT / config}:tiny"


def _open(path: pathlib.Path, finished: str, program: str, config: str, run: Callable[[str, Sequence[str]], int]) -> pathlib.Path:
  if (path / finished).exists():
    return path
  command = f"python -m {program} --config={config} --workdir={path}"
  if path.exists():
    raise RunError(f"{path}: has no {finished}, so it is not finished, or something else; this finishes it: {command}")
  tiny = path.with_name(f"{path.name}_tiny")
  if not (tiny / finished).exists():
    from experiments.compilation_cache import use_compilation_cache

    print(f"There is nothing at {path}, which this makes: {command}\nIts tiny variant, which learns next to nothing, runs into {tiny}.")
    use_compilation_cache(None)
    if run(str(tiny), ["python", "-m", program, f"--config={config}:tiny", f"--workdir={tiny}"]):
      raise RunError(f"{tiny}: the tiny variant did not finish; what went wrong stands above, and what is finished stays")
  print(f"Read from {tiny.name}: a tiny variant, whose numbers say nothing.")
  return tiny
