"""Where a notebook's numbers come from: a finished run or sweep, or its file; where nothing is, the config's tiny variant, run there."""

import os
import pathlib
from collections.abc import Callable, Sequence

from experiments import pipeline, variants
from experiments.check import check_values
from experiments.compilation_cache import use_compilation_cache
from experiments.flags import load_config, load_module
from gr2_jax.reports.studies import StudiedRun, StudiedSweep, read_study_run, read_study_sweep
from gr2_jax.runs.run import RunError
from gr2_jax.runs.run_file import SUFFIX, split_path

_ROOT = pathlib.Path(__file__).parents[1]  # of the configs
Path = str | os.PathLike[str]


def open_run(path: Path, config: str) -> StudiedRun:
  """The finished run at `path`, a directory or `FILE.gr2[:VARIANT/seed_N]`.

  Where there is nothing, that of `config`'s tiny variant at `path`_tiny, run first if need be. Raises RunError for a folder that is no
  finished run and where the tiny run fails, and UserError for a file that cannot be read.
  """

  def run(workdir: str, command: Sequence[str]) -> int:
    return pipeline.execute(load_config(_tiny(config)), workdir, None, command, check=check_values)

  if split_path(str(path)) is None:
    path = _find(pathlib.Path(path), "evaluation/results.json", "experiments.run", config, run)
  return read_study_run(str(path))


def open_sweep(path: Path | Sequence[Path], config: str) -> StudiedSweep:
  """The same for a sweep and its ablation, whose tiny variants run with the seed 0 alone.

  `path` may also be several FILE.gr2, or a folder of them, whose seeds are pooled.
  """

  def run(workdir: str, command: Sequence[str]) -> int:
    return variants.execute(_tiny(config), workdir, [*command, "--seeds=0"], seeds=["0"])

  paths: Sequence[Path] = [path] if isinstance(path, str | os.PathLike) else list(path)
  folder = pathlib.Path(paths[0]) if len(paths) == 1 else None
  if folder is not None and not str(folder).endswith(SUFFIX):
    sent = [] if (folder / "sweep.json").exists() else sorted(folder.glob(f"*{SUFFIX}"))
    paths = sent or [_find(folder, "sweep.json", "experiments.sweep", config, run)]
  ablation = load_module(str(_ROOT / config))
  return read_study_sweep(paths, ablation.VARIANTS, variants.asked_of(ablation))


def _tiny(config: str) -> str:
  return f"{_ROOT / config}:tiny"


def _find(path: pathlib.Path, finished: str, program: str, config: str, run: Callable[[str, Sequence[str]], int]) -> pathlib.Path:
  if (path / finished).exists():
    return path
  command = f"python -m {program} --config={config} --workdir={path}"
  if path.exists():
    raise RunError(f"{path}: has no {finished}, so it is not finished, or something else; this finishes it: {command}")
  tiny = path.with_name(f"{path.name}_tiny")
  if not (tiny / finished).exists():
    print(f"There is nothing at {path}, which this makes: {command}\nIts tiny variant, which learns next to nothing, runs into {tiny}.")
    use_compilation_cache(None)
    if run(str(tiny), ["python", "-m", program, f"--config={config}:tiny", f"--workdir={tiny}"]):
      raise RunError(f"{tiny}: the tiny variant did not finish; what went wrong stands above, and what is finished stays")
  print(f"Read from {tiny.name}: a tiny variant, whose numbers say nothing.")
  return tiny
