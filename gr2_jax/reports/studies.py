"""What notebooks read: a finished run, or a sweep, from its directory or from files that were sent."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from gr2_jax.data.jsonl import read_items
from gr2_jax.errors import UserError
from gr2_jax.evaluation.results import check_results
from gr2_jax.reports.answers import read_answers, show_answer
from gr2_jax.reports.sweeps import build_sweep, check_sweep, load_sweep
from gr2_jax.reports.tables import console_text
from gr2_jax.runs.run import Run
from gr2_jax.runs.run_file import SUFFIX, RunFile, RunRecord, read_run, read_run_file, split_name, split_path
from gr2_jax.training.writers import read_metrics

Curves = Mapping[str, list[dict[str, Any]]]  # training -> lines of its metrics


@dataclasses.dataclass(frozen=True)
class StudiedRun:
  """A finished run: what it says of itself, and its directory, None for one that came as a file. `source`: the path that named it."""

  source: str
  record: RunRecord
  folder: pathlib.Path | None

  def curve(self, training: str) -> list[dict[str, Any]]:
    """The lines that a training logged; none where it did not run."""
    return self.record.metrics.get(training, [])

  def show_answers(self, ranker: str, most: int) -> RenderableType:
    """The first slates that a ranker answered, before and after; for a run that came as a file a sentence on why they are not there."""
    if self.folder is None:
      return console_text(
        f"{self.source} holds no answers to single slates and no policy to give them: see them where the run lies, or repeat it: "
        f"python -m experiments.run --config={self.source} --workdir=NEW"
      )
    catalogue = read_items(self.folder / "data" / "items.jsonl.gz")
    answers = read_answers(self.folder / "evaluation" / f"answers_{ranker}.jsonl")
    return Group(*(show_answer(answer, catalogue) for answer in answers[:most]))


@dataclasses.dataclass(frozen=True)
class StudiedSweep:
  """A finished sweep: `table`, the content of sweep.json, and of each variant the metrics of its seeds' trainings."""

  table: Mapping[str, Any]
  metrics: Mapping[str, Sequence[Curves]]

  def curves(self, training: str = "rl") -> dict[str, list[list[dict[str, Any]]]]:
    """What `plots.plot_sweep` draws: variant -> the lines of each of its seeds in a training, none without that training."""
    return {variant: [of.get(training, []) for of in seeds] for variant, seeds in self.metrics.items()}


def read_study_run(path: str) -> StudiedRun:
  """The finished run at a directory, or in `FILE.gr2[:VARIANT/seed_N]`; raises UserError for one that is damaged, and for another file."""
  parts = split_path(path)
  if parts is None:
    study = StudiedRun(path, read_run(Run.open(path)), pathlib.Path(path))
  else:
    file = read_run_file(parts[0])
    study = StudiedRun(path, file.runs[file.choose(parts[1])], None)
  check_results(study.record.results, f"{path}: results.json")
  return study


def read_study_sweep(
  paths: Sequence[str | os.PathLike[str]], changes: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Any]
) -> StudiedSweep:
  """The sweep at a directory, in a FILE.gr2, or in several of the same ablation (`changes`, `asked`: its own, see `build_sweep`).

  A single file has the table that was sent; several have their seeds pooled anew. Raises UserError for files that hold no sweep or do not
  go together.
  """
  if len(paths) == 1 and not str(paths[0]).endswith(SUFFIX):
    return _read_directory(pathlib.Path(paths[0]))
  if foreign := [str(path) for path in paths if not str(path).endswith(SUFFIX)]:
    raise UserError(f"{foreign[0]} is no FILE{SUFFIX}, and only files are pooled; share it first with experiments.share")
  files = [read_run_file(path) for path in paths]
  for file in files:
    if file.sweep is None:
      raise UserError(f"{file.path} holds a single run and no sweep; give the file of a sweep, or open it as a run")
  if len(files) == 1:
    return _read_file(files[0])
  runs = _join_files(files, changes)
  table = build_sweep(runs, {variant: changes[variant] for variant in runs}, **asked)
  return StudiedSweep(table, {variant: [run.metrics for run in of.values()] for variant, of in runs.items()})


def _read_directory(folder: pathlib.Path) -> StudiedSweep:
  table = load_sweep(folder)
  paths = {variant: [folder / variant / f"seed_{seed}" / "metrics" for seed in of["seeds"]] for variant, of in table["variants"].items()}
  return StudiedSweep(table, {variant: [_read_curves(path) for path in of] for variant, of in paths.items()})


def _read_curves(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  return {path.stem: list(read_metrics(path)) for path in sorted(folder.glob("*.jsonl"))}


def _read_file(file: RunFile) -> StudiedSweep:
  table = dict(file.sweep or {})
  check_sweep(table, f"{file.path}: sweep.json")
  named = [f"{variant}/seed_{seed}" for variant, of in table["variants"].items() for seed in of["seeds"]]
  if missing := [name for name in named if name not in file.runs]:
    raise UserError(f"{file.path} is damaged: its sweep.json tells of {missing[0]}, which it does not hold; ask for the file again")
  metrics = {variant: [file.runs[f"{variant}/seed_{seed}"].metrics for seed in of["seeds"]] for variant, of in table["variants"].items()}
  return StudiedSweep(table, metrics)


def _join_files(files: Iterable[RunFile], changes: Mapping[str, Any]) -> dict[str, dict[int, RunRecord]]:
  """Variant -> seed -> run of all files, in the ablation's order of variants."""
  found: dict[str, dict[int, RunRecord]] = {variant: {} for variant in changes}
  origin: dict[str, pathlib.Path] = {}
  for file in files:
    for name, record in file.runs.items():
      variant = split_name(name)[0]
      if variant not in found:
        raise UserError(f"{file.path} has the variant {variant!r}, which this ablation lacks; leave the file out")
      if name in origin:
        raise UserError(f"{name} stands in {origin[name]} and in {file.path}; leave one of them out")
      origin[name] = file.path
      found[variant][record.seed] = record
  return {variant: dict(sorted(of.items())) for variant, of in found.items() if of}
