"""What notebooks read is the same from a directory and from a file; what a file lacks is told, and files of several seeds are pooled."""

import json

import pytest
from finished_runs import N, make_finished_run
from rich.console import Console

from gr2_jax.errors import UserError
from gr2_jax.evaluation.results import ResultsError
from gr2_jax.reports.studies import read_study_run, read_study_sweep
from gr2_jax.reports.sweeps import build_sweep, sweep_tables, write_sweep
from gr2_jax.runs.archive import read_archive, write_archive
from gr2_jax.runs.run import Run
from gr2_jax.runs.run_file import read_run, write_run_file

CHANGES = {"weak": {"rl.steps": 1}, "strong": {"rl.steps": 9}}
ASKED = {"comparisons": {"Strength": [("strong/policy", "weak/policy")]}}


@pytest.fixture
def write(tmp_path):
  """`write(name, seeds, skills)`: a sweep's directory and its file."""

  def make(name, seeds, skills):
    runs = {f"{v}/seed_{s}": Run.open(make_finished_run(tmp_path / name / v / f"seed_{s}", s, skills[v])) for v in skills for s in seeds}
    for run in runs.values():
      (run.directory / "traces").mkdir()
      report = {"sampling": "targeted", "asked_by_upstream_rank": [4, 2], "accepted_by_upstream_rank": [3, 1]}
      (run.directory / "traces" / "acceptance.json").write_text(json.dumps(report))
      done = {"fingerprint": str(run.directory), "reads": {}, "seconds": 1.0, "outputs": []}
      (run.directory / "traces" / "done.json").write_text(json.dumps(done))
    records = {v: {s: read_run(runs[f"{v}/seed_{s}"]) for s in seeds} for v in skills}
    write_sweep(tmp_path / name, records, build_sweep(records, {v: CHANGES.get(v, {}) for v in skills}, 50, **ASKED))
    pages = {page: tmp_path / name / page for page in ("sweep.json", "sweep.md")}
    write_run_file(tmp_path / f"{name}.gr2", runs, {run: {} for run in runs}, pages=pages)
    return tmp_path / name, tmp_path / f"{name}.gr2"

  return make


def rewrite(path, change):
  with read_archive(path) as archive:
    about, members = archive.about, {name: archive.read(name) for name in archive.names}
  about.pop("members")
  table = json.loads(members["sweep.json"])
  change(table)
  write_archive(path, members | {"sweep.json": json.dumps(table).encode()}, about)


def test_a_sweep_reads_the_same_from_its_directory_and_from_its_file(write):
  directory, file = write("both", (0, 1), {"weak": 0.5, "strong": 5.0})
  of_directory, of_file = (read_study_sweep([path], CHANGES, ASKED) for path in (directory, file))
  assert of_directory == of_file
  assert sweep_tables(of_file.table) == sweep_tables(of_directory.table)
  assert [[len(lines) for lines in of] for of in of_file.curves().values()] == [[4, 4], [4, 4]]
  assert of_file.curves("opd") == {"weak": [[], []], "strong": [[], []]}


def test_files_of_one_seed_each_are_pooled_as_the_sweep_of_all_seeds(write):
  whole, _ = write("whole", (0, 1), {"weak": 0.5, "strong": 5.0})
  files = [write(f"of {seed}", (seed,), {"weak": 0.5, "strong": 5.0})[1] for seed in (1, 0)]
  study, expected = read_study_sweep(files, CHANGES, ASKED), read_study_sweep([whole], CHANGES, ASKED)
  assert study.metrics == expected.metrics and study.table["variants"]["strong"]["n"] == 2 * N
  for variant, of in study.table["variants"].items():
    assert of["seeds"] == [0, 1] and of["changes"] == CHANGES[variant]
    assert of["orders"] == expected.table["variants"][variant]["orders"]
  (pooled,), (told,) = (of.table["comparisons"]["Strength"] for of in (study, expected))
  assert pooled["paired"]["recall@1"]["delta"] == told["paired"]["recall@1"]["delta"] and pooled["n"] == told["n"]
  assert study.table["acceptance"] == expected.table["acceptance"] == {"targeted": {"asked": [16, 8], "accepted": [12, 4]}}


def test_files_that_do_not_go_together_are_refused(write):
  _, one = write("one", (0,), {"weak": 0.5})
  _, again = write("again", (0,), {"weak": 0.5})
  with pytest.raises(UserError, match=r"weak/seed_0 stands in .*one\.gr2 and in .*again\.gr2; leave one of them out"):
    read_study_sweep([one, again], CHANGES, ASKED)
  _, other = write("other", (0,), {"strange": 0.5})
  with pytest.raises(UserError, match=r"other\.gr2 has the variant 'strange', which this ablation lacks"):
    read_study_sweep([one, other], CHANGES, ASKED)


def test_a_table_of_other_runs_than_the_file_holds_is_refused(write):
  _, file = write("one", (0,), {"weak": 0.5})
  rewrite(file, lambda table: table["variants"]["weak"].update(seeds=[0, 7]))
  with pytest.raises(UserError, match=r"one\.gr2 is damaged: its sweep\.json tells of weak/seed_7, which it does not hold"):
    read_study_sweep([file], CHANGES, ASKED)
  rewrite(file, lambda table: table.update(variants=3))
  with pytest.raises(ResultsError, match=r"one\.gr2: sweep\.json: its variants"):
    read_study_sweep([file], CHANGES, ASKED)


def test_answers_are_said_not_to_be_in_a_file(tmp_path):
  run = Run.open(make_finished_run(tmp_path / "run", 3))
  write_run_file(tmp_path / "x.gr2", {"run": run}, {"run": {}}, pages={})
  study = read_study_run(str(tmp_path / "x.gr2"))
  assert study.record.results == read_study_run(str(tmp_path / "run")).record.results
  console = Console(width=400, record=True)
  console.print(study.show_answers("policy", 3))
  told = console.export_text()
  assert "x.gr2 holds no answers to single slates and no policy to give them" in told and "x.gr2 --workdir=NEW" in told


def test_results_that_are_none_are_refused(tmp_path):
  make_finished_run(tmp_path / "run", 3)
  (tmp_path / "run" / "evaluation" / "done.json").unlink()
  (tmp_path / "run" / "evaluation" / "results.json").write_text("{}")
  with pytest.raises(ResultsError, match=r"run: results\.json"):
    read_study_run(str(tmp_path / "run"))
