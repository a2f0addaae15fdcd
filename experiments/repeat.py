"""A run repeated from a file: its config, what differs before anything is trained, and at the end whether its numbers come again."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.stages import load_stages
from gr2_jax.errors import ConfigError
from gr2_jax.evaluation.per_slate import load_per_slate, read_per_slate
from gr2_jax.evaluation.results import check_results, load_results
from gr2_jax.files import replacing, write_json
from gr2_jax.reports.repetition import compare_repetition, judge_repetition, render_repetition, repetition_page
from gr2_jax.runs.fingerprints import config_to_json, flat_leaves, hash_path, list_differences, value_at
from gr2_jax.runs.inputs import done_elsewhere
from gr2_jax.runs.run import Run
from gr2_jax.runs.run_file import RunFile, RunRecord, read_run_file, split_path
from gr2_jax.runs.stages import NeededStage, needed_stages
from gr2_jax.runs.versions import compute_versions
from gr2_jax.training.progress import Progress

# What a file may name and not bring: code of this machine that would run, and addresses to which it would send data and keys.
_OUTSIDE = ("fn", "url")
_CODE = ("gr2_jax", "git_commit", "git_tree")
_MACHINE = ("system", "platform", "device_kind", "devices", "processor")


def load_shared_config(path: str) -> ConfigDict:
  """The config of `FILE.gr2` or `FILE.gr2:VARIANT/seed_N`, typed as the records have it; raises ConfigError where it does not fit them."""
  repetition = Repetition(path)
  return type_config(repetition.record.config, str(repetition.file.path))


def type_config(config: Mapping[str, Any], where: str) -> ConfigDict:
  """A config of JSON as a config file would have made it: tuples in place of lists, and each value of its setting's type.

  Raises ConfigError, naming `where` it comes from, for settings that this version does not know or the config lacks, and for other types.
  """
  from configs.base import base

  typed, values = base(), flat_leaves(config)
  known = flat_leaves(config_to_json(typed))
  unknown, missing = [key for key in values if key not in known], [key for key in known if key not in values]
  if unknown or missing:
    lines = [f"config.{key} is no setting of this version" for key in unknown] + [f"config.{key} is missing" for key in missing]
    raise ConfigError(f"{where}: {'; '.join(lines[:5])}; use the version that made it, which its versions.json names")
  for key, value in values.items():
    try:
      typed.update_from_flattened_dict({key: _to_tuples(value)})
    except (TypeError, ValueError) as error:
      raise ConfigError(f"{where}: config.{key}: {value!r} is not of the setting's type ({error}); ask for the file again") from None
  return typed.lock()


def _to_tuples(value: Any) -> Any:
  return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Repetition:
  """The run of `FILE.gr2[:NAME]`, to be repeated; `given`: config keys that the command line sets."""

  path: str
  given: Collection[str] = ()

  @functools.cached_property
  def file(self) -> RunFile:
    """The file, read; raises ArchiveError for one that cannot be."""
    return read_run_file(self._parts[0])

  @functools.cached_property
  def name(self) -> str:
    """Which of its runs; raises ConfigError, listing them, where the path does not say."""
    return self.file.choose(self._parts[1])

  @property
  def record(self) -> RunRecord:
    """What the file says of that run."""
    return self.file.runs[self.name]

  @property
  def _parts(self) -> tuple[str, str]:
    parts = split_path(self.path)
    if parts is None:
      raise ConfigError(f"--config: {self.path} is no FILE.gr2; give one that experiments.share made")
    return parts

  def check(self) -> None:
    """Raises ConfigError for code and addresses that the file names and the command line does not, and ResultsError for damaged results."""
    outside = {key: value for key, value in flat_leaves(self.record.config).items() if key.rpartition(".")[2] in _OUTSIDE and value}
    for key, value in outside.items():
      if key not in self.given:
        raise ConfigError(
          f"{self.file.path} names something outside of itself: config.{key} is {value!r}; where you know it and want it used, add "
          f"--config.{key}={value}"
        )
    where = f"{self.file.path}: {self.name}"
    check_results(self.record.results, f"{where}/results.json")
    self._tested(self.record)

  def _tested(self, record: RunRecord) -> Any:
    return read_per_slate(record.per_slate, f"{self.file.path}: per_slate.npz")

  def find_differences(self, config: ConfigDict) -> dict[str, list[str]]:
    """Kind -> lines of what differs from the file before anything is run: configuration, data, code, versions, machine.

    Settings that no stage reads decide nothing, and a file that lies elsewhere with the same content is the same. Raises ConfigError for
    data that are not here.
    """
    needed = needed_stages(load_stages(), config)
    data, moved = self._compare_data(config, needed)
    versions = self._compare_versions()
    return {"configuration": self._compare_configs(config, needed, moved), "data": data, **versions}

  def _compare_configs(self, config: ConfigDict, needed: Sequence[NeededStage], moved: Collection[str]) -> list[str]:
    there, here = (flat_leaves(of) for of in (self.record.config, config_to_json(config)))
    read = {key for stage in needed for key in stage.stage.reads}
    differing = [key for key in here if there.get(key) != here[key] and key.partition(".")[0] in read and key not in moved]
    return [f"{key}: {there.get(key)!r} -> {here[key]!r}" for key in differing]

  def _compare_data(self, config: ConfigDict, needed: Sequence[NeededStage]) -> tuple[list[str], list[str]]:
    """(what differs, keys of files and runs that lie elsewhere)."""
    lines, moved = [], []
    for stage in needed:
      reads = self.record.stages.get(stage.name, {}).get("reads", {})
      if reads and reads.get("format", stage.stage.format) != stage.stage.format:
        lines.append(f"the stage {stage.name!r} writes format {stage.stage.format} here, and {reads['format']} there")
      for key, digest in reads.get("files", {}).items():
        path = pathlib.Path(str(value_at(config, key)))
        if not path.exists() and key in self.given:
          continue  # another source than files: a difference of the configuration
        if not path.exists():
          raise ConfigError(
            f"--config.{key}: {path}, which the run of {self.file.path} read, is not here; give --config.{key}=PATH of the same files "
            f"(SHA-256 {str(digest)[:16]}...)"
          )
        moved.append(key)
        if (found := hash_path(path)) != digest:
          lines.append(f"{key}: {path} has another content (SHA-256 {str(digest)[:16]}... there, {found[:16]}... here)")
      for directory, of in stage.stage.runs:
        moved.append(directory)
        fingerprint = done_elsewhere(Run(pathlib.Path(), config), directory, of)["fingerprint"]
        if fingerprint != reads.get("runs", {}).get(directory):
          lines.append(f"{directory}: the stage {value_at(config, of)!r} of {value_at(config, directory)} was made from other inputs")
    return lines, moved

  def _compare_versions(self) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"code": [], "versions": [], "machine": []}
    here = compute_versions()
    for line in list_differences(dict(self.record.versions), here):
      name = line.partition(":")[0]
      found["code" if name in _CODE else "machine" if name in _MACHINE else "versions"].append(line)
    if not found["code"] and here["git_tree"] != "clean":
      found["code"].append("git_tree: of neither side is it known which changes stood beside the commit")
    return found

  def tell(self, config: ConfigDict, progress: Progress) -> dict[str, list[str]]:
    """Prints what differs, each on a line, and returns it."""
    differences = self.find_differences(config)
    progress.note(f"repeats   {self.file.path}, {self.name}")
    for kind, lines in differences.items():
      for line in lines:
        progress.note(f"differs   {kind}: {line}")
    if differences["configuration"]:
      progress.note("          With another configuration it is no repetition: the figures at the end are compared nevertheless")
    if not any(differences.values()):
      progress.note("          Configuration, data, code, versions and machine are those of the file: expected bit for bit")
    return differences

  def tell_data(self, run: Run, progress: Progress) -> None:
    """Prints what differs in what the stage `data`, which is finished, has left."""
    for line in self._compare_made_data(run):
      progress.note(f"differs   data: {line}")

  def _compare_made_data(self, run: Run) -> list[str]:
    """Artifacts of the stage `data` that are not what they were; none where either side has no digests."""
    before, now = (of.get("data", {}).get("outputs") for of in (self.record.stages, {"data": run.done("data") or {}}))
    if not (isinstance(before, dict) and isinstance(now, dict)):
      return []
    digests = [{name: of.get("sha256") for name, of in outputs.items()} for outputs in (before, now)]
    return [f"data/{name} is not what it was there" for name in sorted({*before, *now}) if digests[0].get(name) != digests[1].get(name)]

  def conclude(self, run: Run, differences: Mapping[str, Sequence[str]], progress: Progress) -> None:
    """Compares the finished run with the file's: `evaluation/repetition.json`, `repetition.md`, and a table."""
    results = load_results(run.path("evaluation", "results.json"))
    seeds = [self._tested(record) for record in self.file.seeds_of(self.name)]
    here = load_per_slate(run.path("evaluation", "per_slate.npz"))
    found = {kind: list(lines) for kind, lines in differences.items()}
    found["data"] += self._compare_made_data(run)
    repetition = {
      "file": str(self.file.path),
      "run": self.name,
      "differences": found,
      "expected_equal": not any(found.values()),
      **compare_repetition(self._tested(self.record), here, seeds if len(seeds) > 1 else ()),
    }
    titles = {**self.record.results.get("titles", {}), **results.get("titles", {})}
    write_json(run.path("evaluation", "repetition.json"), repetition)
    page = run.path("evaluation", "repetition.md")
    with replacing(page) as partial:
      partial.write_text(repetition_page(repetition, titles), encoding="utf-8")
    progress.console.print(render_repetition(repetition, titles))
    progress.note(judge_repetition(repetition, titles))
    progress.note(f"What differed, and all metrics: {page}")
