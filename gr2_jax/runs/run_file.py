"""A finished run, or a sweep of them, as one file that travels: a ZIP of JSON, text and arrays without weights.

For each run, in a folder of its name: `config.json` as resolved, `changes.json` (where it differs from the defaults), `command.txt`,
`versions.json` (packages, machine, commit), `stages.json` (each stage's `done.json`: fingerprints of what it read, data among it, digests
of what it left, seconds), `results.json`, `per_slate.npz`, `card.md`, `acceptance.json` of its traces and the curves, `metrics/*.jsonl`. A
sweep's runs are named VARIANT/seed_N, beside `sweep.json` and `sweep.md`. `manifest.json` says what the file is and lists all of it.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gr2_jax.errors import ConfigError
from gr2_jax.runs.archive import Archive, ArchiveError, dump_json, read_archive, write_archive
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.fingerprints import fill_added
from gr2_jax.runs.run import Run, RunError, read_object
from gr2_jax.runs.versions import version_of
from gr2_jax.training.writers import read_metrics

SUFFIX = ".gr2"
FORMAT = 1
PROJECT = "gr2_jax"
SINGLE = "run"  # the name of the run in a file that holds one

_ACCEPTANCE = ("traces", "acceptance.json")
_CHOICE = re.compile(rf"(.*{re.escape(SUFFIX)})(?::(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """What a run says of itself, read from its directory or from a file.

  `config`: resolved, with the settings that the run is older than. `stages`: what each finished stage left, see `Run.done`.
  `results`: results.json; `per_slate`: arrays of per_slate.npz by name; `metrics`: lines of each training's curve. `acceptance`: how many
  of a run's traces were accepted; None without traces, and in files that are older.
  """

  config: Mapping[str, Any]
  versions: Mapping[str, str | None]
  commands: str
  stages: Mapping[str, Mapping[str, Any]]
  results: Mapping[str, Any]
  per_slate: Mapping[str, np.ndarray]
  metrics: Mapping[str, list[dict[str, Any]]]
  acceptance: Mapping[str, Any] | None = None

  @property
  def seed(self) -> int:
    """The run's."""
    seed: int = self.config["seed"]
    return seed


@dataclasses.dataclass(frozen=True)
class RunFile:
  """A file's runs by name: SINGLE alone, or VARIANT/seed_N of a sweep. `about`: its manifest; `sweep`: the sweep.json of a sweep's."""

  path: pathlib.Path
  about: Mapping[str, Any]
  runs: Mapping[str, RunRecord]
  sweep: Mapping[str, Any] | None = None

  def choose(self, name: str) -> str:
    """The name of the run that is meant, '' where there is one; raises ConfigError, listing them, for any other."""
    if name in self.runs:
      return name
    if not name and len(self.runs) == 1:
      return next(iter(self.runs))
    wrong = f"has no run {name!r}" if name else f"holds {len(self.runs)} runs"
    raise ConfigError(f"{self.path} {wrong}; choose one, {self.path}:NAME, of {', '.join(self.runs)}")

  def seeds_of(self, name: str) -> list[RunRecord]:
    """The runs of the same variant, that of this name among them."""
    return [run for other, run in self.runs.items() if split_name(other)[0] == split_name(name)[0]]


def split_path(path: str) -> tuple[str, str] | None:
  """(file, run that is meant, '' for none) of `FILE.gr2` or `FILE.gr2:NAME`; None for a path that means no such file."""
  found = _CHOICE.fullmatch(path)
  return (found[1], found[2] or "") if found else None


def split_name(name: str) -> tuple[str, str]:
  """(variant, seed's folder) of a sweep's run; ('', name) of a single one."""
  variant, _, seed = name.rpartition("/")
  return variant, seed


def find_finished(directory: str | os.PathLike[str]) -> tuple[dict[str, Run], dict[str, str]]:
  """(the finished runs at `directory` by name, why each other one is left out); raises RunError where there is neither run nor sweep."""
  root = pathlib.Path(directory)
  if (root / "config.json").exists():
    found = {SINGLE: root}
  else:
    found = {f"{path.parent.parent.name}/{path.parent.name}": path.parent for path in sorted(root.glob("*/seed_*/config.json"))}
  if not found:
    raise RunError(f"{directory} is neither a run nor a sweep (no config.json); give the --workdir of one")
  runs = {name: Run.open(path) for name, path in found.items()}
  unfinished = {name: "its evaluation is not finished" for name, run in runs.items() if not run.is_done("evaluation")}
  return {name: run for name, run in runs.items() if name not in unfinished}, unfinished


def read_run(run: Run) -> RunRecord:
  """The record of a finished run's directory; raises RunError for one that is damaged."""
  check_intact(run, "evaluation", "results.json", "per_slate.npz")
  with np.load(run.path("evaluation", "per_slate.npz"), allow_pickle=False) as arrays:
    per_slate = dict(arrays)
  return RunRecord(
    config=fill_added(read_object(run.directory / "config.json", "restore it")),
    versions=read_object(run.directory / "versions.json", "restore it"),
    commands=(run.directory / "command.txt").read_text(encoding="utf-8"),
    stages=_read_stages(run),
    results=read_object(run.path("evaluation", "results.json"), "restore it, or run the stage 'evaluation' again"),
    per_slate=per_slate,
    metrics={path.stem: read_metrics(path) for path in sorted(run.directory.glob("metrics/*.jsonl"))},
    acceptance=read_object(accepted, "restore it, or make it again") if (accepted := run.path(*_ACCEPTANCE)).exists() else None,
  )


def _read_stages(run: Run) -> dict[str, dict[str, Any]]:
  names = [path.parent.name for path in sorted(run.directory.glob("*/done.json"))]
  return {name: done for name in names if (done := run.done(name)) is not None}


def write_run_file(
  path: str | os.PathLike[str],
  runs: Mapping[str, Run],
  changes: Mapping[str, Mapping[str, Any]],
  *,
  pages: Mapping[str, pathlib.Path],
  policy: tuple[Mapping[str, Any], Mapping[str, bytes | pathlib.Path]] | None = None,
) -> None:
  """Writes a file of finished runs by name; `changes`: of each the keys at which its config differs from the defaults.

  `pages`: more files by the name under which they go in (a sweep's table). `policy`: its description for the manifest, and its files, see
  `portable.pack_policy`. Raises RunError for a run that is damaged.
  """
  members: dict[str, bytes | pathlib.Path] = dict(pages)
  told = {}
  for name, run in runs.items():
    record = read_run(run)
    members |= {f"{name}/{member}": content for member, content in _members_of(run, record, changes[name]).items()}
    commit = {key: record.versions.get(key) for key in ("gr2_jax", "git_commit", "git_tree")}
    told[name] = {"seed": record.seed, "dataset": record.results.get("dataset"), **commit}
  about: dict[str, Any] = {"project": PROJECT, "format": FORMAT, "kind": "run" if [*runs] == [SINGLE] else "sweep"}
  about |= {"written_by": version_of(PROJECT), "runs": told}
  if policy is not None:
    about["policy"], files = policy
    members |= files
  write_archive(path, members, about)


def _members_of(run: Run, record: RunRecord, changes: Mapping[str, Any]) -> dict[str, bytes | pathlib.Path]:
  card = run.path("evaluation", "card.md")
  return {
    "config.json": dump_json(record.config),
    "changes.json": dump_json(changes),
    "command.txt": record.commands.encode(),
    "versions.json": dump_json(record.versions),
    "stages.json": dump_json(record.stages),
    "results.json": run.path("evaluation", "results.json"),
    "per_slate.npz": run.path("evaluation", "per_slate.npz"),
    **({"card.md": card} if card.exists() else {}),
    **({"acceptance.json": dump_json(record.acceptance)} if record.acceptance is not None else {}),
    **{f"metrics/{name}.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode() for name, lines in record.metrics.items()},
  }


def read_run_file(path: str | os.PathLike[str]) -> RunFile:
  """Reads what `write_run_file` wrote, of this or an earlier version; nothing of it is executed.

  Raises ArchiveError for a file of another project or a newer format, and for one that is cut short, damaged or harmful.
  """
  with read_archive(path) as archive:
    about = archive.about
    _check_about(archive)
    runs = {name: _read_record(archive, name) for name in about["runs"]}
    return RunFile(archive.path, about, runs, archive.read_json("sweep.json") if "sweep.json" in archive.names else None)


def _check_about(archive: Archive) -> None:
  about, path = archive.about, archive.path
  if about.get("project") != PROJECT or not isinstance(about.get("format"), int):
    raise ArchiveError(f"{path} is of another project, not of {PROJECT}; give a file that experiments.share made")
  if about["format"] > FORMAT:
    by = f" It was written by {PROJECT} {str(about.get('written_by'))[:20]}."
    raise ArchiveError(f"{path} is of format {about['format']}, and this version reads formats up to {FORMAT}; update {PROJECT}.{by}")
  if not (isinstance(about.get("runs"), dict) and about["runs"]):
    raise ArchiveError(f"{path} holds no run; make it again with experiments.share")


def _read_record(archive: Archive, name: str) -> RunRecord:
  read = {member: archive.read_json(f"{name}/{member}.json") for member in ("config", "versions", "stages", "results")}
  accepted = f"{name}/acceptance.json"
  curves = [member for member in archive.names if member.startswith(f"{name}/metrics/") and member.endswith(".jsonl")]
  record = RunRecord(
    config=fill_added(read["config"]),
    versions=read["versions"],
    commands=archive.read_text(f"{name}/command.txt"),
    stages=read["stages"],
    results=read["results"],
    per_slate=archive.read_arrays(f"{name}/per_slate.npz"),
    metrics={pathlib.PurePosixPath(member).stem: archive.read_json_lines(member) for member in curves},
    acceptance=archive.read_json(accepted) if accepted in archive.names else None,
  )
  if fault := next(_list_faults(record), None):
    raise ArchiveError(f"{archive.path} is damaged: {name}/{fault}; ask for the file again, or make it anew with experiments.share")
  return record


def _list_faults(record: RunRecord) -> Iterator[str]:
  """What is of another kind than a run writes; configs and results are checked by what they say where they are used."""
  if not isinstance(record.config.get("seed"), int):
    yield "config.json has no seed"
  if not all(value is None or isinstance(value, str) for value in record.versions.values()):
    yield "versions.json holds something else than text"
  titles = record.results.get("titles", {})
  if not (isinstance(titles, dict) and all(isinstance(title, str) for title in titles.values())):
    yield "results.json has titles that are no text"
  for stage, done in record.stages.items():
    if not (isinstance(done, dict) and isinstance(done.get("reads"), dict) and isinstance(done.get("fingerprint"), str)):
      yield f"stages.json says nothing of what {stage!r} read"
    elif not isinstance(done.get("seconds"), int | float):
      yield f"stages.json says nothing of the time that {stage!r} took"
  if record.acceptance is not None and not _counts_traces(record.acceptance):
    yield "acceptance.json counts no traces"
  for training, lines in record.metrics.items():
    numbers = (value for line in lines for value in line.values() if value is not None)
    if not all(isinstance(line.get("step"), int) for line in lines) or not all(isinstance(value, int | float) for value in numbers):
      yield f"metrics/{training}.jsonl holds a line without step, or something else than numbers"


def _counts_traces(acceptance: Mapping[str, Any]) -> bool:
  counts = [acceptance.get(f"{name}_by_upstream_rank") for name in ("asked", "accepted")]
  integers = all(isinstance(of, list) and all(type(count) is int for count in of) for of in counts)
  return isinstance(acceptance.get("sampling"), str) and integers
