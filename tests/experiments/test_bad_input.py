"""Input that cannot be used ends in one line that names file, line and field, before any training; told to skip, the rest is used."""

import gzip
import json
import shutil

import numpy as np
import pytest
from small_runs import UNUSUAL, continue_from, edit_line, hash_files, tiny_config

from experiments.pipeline import execute
from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.schema import SPLITS, History
from gr2_jax.evaluation.results import ResultsError
from gr2_jax.rl.stop import NoSignalError
from gr2_jax.runs.stages import Stage
from gr2_jax.training.checkpoints import CheckpointError
from gr2_jax.training.guard import DivergedError

SLATES = "slates_train.jsonl"

# (file, line, its new text or fields, what the message says after FILE:LINE: )
BROKEN = {
  "broken JSON, items": ("items.jsonl", 7, '{"item": "x", "title": ', "column 1: broken JSON"),
  "broken JSON, interactions": ("interactions.jsonl", 1, "not json", "column 1: broken JSON"),
  "broken JSON, slates": (SLATES, 60, "{}}", "column 3: broken JSON"),
  "no object": (SLATES, 2, "[1, 2]", "line: a JSON list, not an object"),
  "title of another type": ("items.jsonl", 7, {"title": 5}, "title: 5 is not text"),
  "negative price": ("items.jsonl", 7, {"price": -1.0}, "price: -1.0"),
  "no user": ("interactions.jsonl", 4, {"user": None}, "user: missing"),
  "unknown item, interactions": ("interactions.jsonl", 3, {"items": ["nowhere"], "timestamps": None}, "items: unknown item 'nowhere'"),
  "unknown item, history": (SLATES, 5, {"history": ["nowhere"]}, "history: unknown item 'nowhere'"),
  "unknown item, candidates": (SLATES, 5, {"candidates": ["nowhere", "there"], "labels": [0, 1], "upstream_scores": None}, "candidates: "),
  "empty history, interactions": ("interactions.jsonl", 2, {"items": [], "timestamps": []}, "items: user 'user00001' has no interactions"),
  "empty history, slates": (SLATES, 5, {"history": []}, "history: user 'user00004' has none"),
  "decreasing times": ("interactions.jsonl", 2, {"items": ["item0000", "item0001"], "timestamps": [2, 1]}, "timestamps: they decrease"),
  "target missing from its slate": (SLATES, 5, {"labels": [0] * 10}, "labels: all are 0, the target is missing from the slate"),
  "repeated candidate": (
    SLATES,
    5,
    {"candidates": ["item0000", "item0000"], "labels": [1, 0], "upstream_scores": None},
    "candidates: 'item0000' is repeated",
  ),
  "slate of one": (SLATES, 5, {"candidates": ["item0000"], "labels": [1], "upstream_scores": None}, "candidates: a slate of 1"),
  "negative label": (SLATES, 5, {"labels": [-1] + [1] * 9}, "use 0 none, 1 click, 2 conversion"),
  "a grade too many": (SLATES, 5, {"labels": [3] + [0] * 9}, "use 0 none, 1 click, 2 conversion"),
  "milliseconds, interactions": ("interactions.jsonl", 2, {"items": ["item0000"], "timestamps": [17 * 10**11]}, "timestamps: 17000000"),
  "milliseconds, slates": (SLATES, 5, {"timestamp": 1700000000000}, "timestamp: 1700000000000"),
  "scores against the order": (SLATES, 5, {"upstream_scores": list(range(10))}, "upstream_scores: they rise"),
  "a field given twice": (SLATES, 5, '{"user": "u", "user": "v"}', "user: given twice"),
  "fractional label": (SLATES, 5, {"labels": [0.5] + [1] * 9}, "labels: 0.5 is not a 64-bit integer"),
  "fewer labels than candidates": (SLATES, 5, {"labels": [1]}, "labels: 1 for 10 candidates"),
  "NaN label": (SLATES, 5, {"labels": [float("nan")] + [1] * 9}, "labels: NaN is not JSON"),
  "NaN score": (SLATES, 5, {"upstream_scores": [float("nan")] * 10}, "upstream_scores: NaN is not JSON"),
}


def go(run_here, dataset, workdir, stages=("data",), **changes):
  return run_here(tiny_config(data__source=str(dataset), **changes), workdir, list(stages))


def read_json_lines(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_line_stops_the_run_and_is_skipped_when_told_to(case, dataset, run_here, tmp_path, capsys):
  name, number, change, message = BROKEN[case]
  file, run = dataset / name, tmp_path / "run"
  edit_line(file, number, change)
  assert go(run_here, dataset, run) == 1
  error = capsys.readouterr().err
  assert error.startswith(f"ERROR: {file}:{number}: ")
  assert message in error
  assert error.endswith("; or pass --config.data.on_error=skip\n")
  assert error.count("\n") == 1
  assert not list((run / "data").iterdir())

  # The advice works in the same run directory, since nothing was made in it.
  assert go(run_here, dataset, run, data__on_error="skip") == 0
  bad = [line for line in read_json_lines(run / "data" / "bad_lines.jsonl") if line["left_out"] == "line"]
  assert (bad[0]["file"], bad[0]["line"]) == (str(file), number)
  assert message in bad[0]["reason"]
  out = capsys.readouterr().out
  assert f"data: {len(bad):,} bad lines" in out and f"left out, listed in {run / 'data' / 'bad_lines.jsonl'}" in out
  counts = json.loads((run / "data" / "counts.json").read_text())
  read = {"items.jsonl": counts["items"], "interactions.jsonl": counts["users"], SLATES: counts["slates"]["train"]}
  left_out = {file: sum(line["file"] == str(dataset / file) for line in bad) for file in read}
  assert {file: read[file] + left_out[file] for file in read} == {"items.jsonl": 120, "interactions.jsonl": 104, SLATES: 60}


def test_a_line_that_was_mended_is_read_by_the_same_command(dataset, run_here, tmp_path, capsys):
  file = dataset / "items.jsonl"
  right = file.read_text(encoding="utf-8")
  edit_line(file, 9, "{")
  assert go(run_here, dataset, tmp_path / "run") == 1
  file.write_text(right, encoding="utf-8")
  assert go(run_here, dataset, tmp_path / "run") == 0
  assert not (tmp_path / "run" / "data" / "bad_lines.jsonl").exists()


def test_text_in_any_script_and_long_histories_are_kept_as_they_are(dataset, run_here, tmp_path):
  for number, change in enumerate(UNUSUAL.values(), start=3):
    edit_line(dataset / "items.jsonl", number, change)
  items = [f"item{i % 120:04d}" for i in range(10_000)]
  edit_line(dataset / "interactions.jsonl", 1, {"items": items, "timestamps": list(range(10_000))})
  edit_line(dataset / SLATES, 1, {"history": items})
  assert go(run_here, dataset, tmp_path / "run") == 0
  written = tmp_path / "run" / "data"
  assert read_items(written / "items.jsonl.gz") == read_items(dataset / "items.jsonl")
  for stem, read in (("interactions", read_interactions), ("slates_train", read_slates)):
    assert read(written / f"{stem}.jsonl.gz", None) == read(dataset / f"{stem}.jsonl", None)


@pytest.mark.parametrize(
  ("gone", "message"),
  [
    ("items.jsonl", "config.data.source: {} has no items.jsonl or items.jsonl.gz"),
    ("slates_test.jsonl", "config.slates.source: 'log' needs slates_test.jsonl[.gz] with at least one usable line"),
  ],
)
def test_a_missing_file_is_named_before_any_training(gone, message, dataset, run_here, tmp_path, capsys):
  (dataset / gone).unlink()
  assert go(run_here, dataset, tmp_path / "run") == 1
  assert message.format(dataset) in capsys.readouterr().err


def test_a_folder_of_items_alone(dataset, run_here, tmp_path, capsys):
  for path in dataset.iterdir():
    if path.name != "items.jsonl":
      path.unlink()
  assert go(run_here, dataset, tmp_path / "run") == 1
  assert f"config.data.source: {dataset} has no interactions.jsonl or interactions.jsonl.gz" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["items.jsonl", "interactions.jsonl", SLATES])
def test_a_file_both_plain_and_as_gzip(name, dataset, run_here, tmp_path, capsys):
  (dataset / f"{name}.gz").write_bytes(gzip.compress((dataset / name).read_bytes()))
  assert go(run_here, dataset, tmp_path / "run") == 1
  assert f"{dataset / name}.gz: {name} lies beside it" in capsys.readouterr().err


def test_slates_alone_are_their_own_log(dataset, run_here, tmp_path, capsys):
  (dataset / "interactions.jsonl").unlink()
  assert go(run_here, dataset, tmp_path / "ctr", slates__source="ctr") == 1
  assert "config.slates.source: 'ctr' builds slates from interactions.jsonl" in capsys.readouterr().err
  assert go(run_here, dataset, tmp_path / "run") == 0
  assert "the histories of the slates of 104 users are the log" in capsys.readouterr().out
  slates = [slate for split in SPLITS for slate in read_slates(dataset / f"slates_{split}.jsonl", None)]
  log = read_interactions(tmp_path / "run" / "data" / "interactions.jsonl.gz", None)
  assert log == tuple(History(slate.user, slate.history, (slate.timestamp,) * len(slate.history)) for slate in slates)


def test_targets_that_their_history_holds_are_told_once(dataset, run_here, tmp_path, capsys):
  for number in (2, 3):
    change = {"history": ["item0000"], "candidates": ["item0000", "item0001"], "labels": [number - 2, 1], "upstream_scores": None}
    edit_line(dataset / SLATES, number, change)
  assert go(run_here, dataset, tmp_path / "run") == 0
  assert capsys.readouterr().out.count("1 of 104 slates have a target that their history holds already") == 1


def test_files_of_which_nothing_is_left(dataset, run_here, tmp_path, capsys):
  file = dataset / "slates_validation.jsonl"
  file.write_text("[]\n" * 20)
  assert go(run_here, dataset, tmp_path / "run", data__on_error="skip") == 1
  assert "needs slates_validation.jsonl[.gz] with at least one usable line" in capsys.readouterr().err
  assert len(read_json_lines(tmp_path / "run" / "data" / "bad_lines.jsonl")) == 20
  for name in ("interactions.jsonl", "items.jsonl"):
    (dataset / name).write_text("\n")
    assert go(run_here, dataset, tmp_path / "run", data__on_error="skip") == 1
    assert f"{dataset / name}: holds no usable line" in capsys.readouterr().err


def test_slates_longer_than_answers_can_name(dataset, run_here, tmp_path, capsys):
  ids = [f"item{i:04d}" for i in range(11)]
  edit_line(dataset / "slates_test.jsonl", 2, {"candidates": ids, "labels": [1] + [0] * 10, "upstream_scores": None})
  assert go(run_here, dataset, tmp_path / "run", ("data", "tokenize")) == 1
  assert "--config.tokenize.num_candidates: a slate has 11 candidates, but only 10 have names" in capsys.readouterr().err
  assert not (tmp_path / "run" / "tokenize").exists()


@pytest.mark.parametrize("error", [CheckpointError, DivergedError, NoSignalError, ResultsError])
def test_what_a_stage_refuses_to_go_on_with_is_one_line(error, tmp_path, capsys):
  def run(context):
    raise error("what, where, and what to do")

  stage = Stage("data", run, reads=("seed",))
  assert execute(tiny_config(), str(tmp_path / "run"), None, [], [stage]) == 1
  assert capsys.readouterr().err == "ERROR: what, where, and what to do\n"


BEFORE_SFT = ("data", "tokenize", "midtrain", "slates", "evidence", "traces")


def refuse(run_here, config, run, capsys):
  """Runs SFT, which must fail and leave everything of the earlier stages as it was; returns its message."""
  before = {stage: hash_files(run / stage) for stage in BEFORE_SFT}
  assert run_here(config, run, ["sft"]) == 1
  assert {stage: hash_files(run / stage) for stage in BEFORE_SFT} == before
  error = capsys.readouterr().err
  assert error.startswith("ERROR: ")
  assert "Traceback" not in error
  return error


def test_damaged_parameters_of_an_earlier_stage(tiny_run, run_here, tmp_path, capsys):
  config = tiny_config()
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE_SFT)
  for path in (run / "midtrain" / "checkpoints" / "3" / "state").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  error = refuse(run_here, config, run, capsys)
  assert f"{run / 'midtrain' / 'checkpoints'} is damaged: " in error and "stage 'midtrain'" in error


def test_an_earlier_stage_whose_checkpoints_are_gone(tiny_run, run_here, tmp_path, capsys):
  config = tiny_config()
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE_SFT)
  for checkpoint in (run / "midtrain" / "checkpoints").iterdir():
    shutil.rmtree(checkpoint)
  error = refuse(run_here, config, run, capsys)
  assert f"{run / 'midtrain' / 'checkpoints'} is damaged: " in error and "stage 'midtrain'" in error


@pytest.mark.slow
def test_a_learning_rate_that_diverges(tiny_run, run_here, tmp_path, capsys):
  # Warm-up begins at 0, so the second step throws the parameters away and the third finds no finite loss.
  config = tiny_config(sft__optimizer__learning_rate=1e30, sft__max_skips=1)
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE_SFT)
  error = refuse(run_here, config, run, capsys)
  assert "--config.sft.optimizer.learning_rate" in error
  batch = run / "sft" / "skipped_step3_process0.npz"
  assert str(batch) in error
  assert set(np.load(batch)) == {"tokens", "positions", "segment_ids", "parts", "weights"}
  lines = read_json_lines(run / "metrics" / "sft.jsonl")
  assert [(line["step"], line["skipped"], "loss" in line) for line in lines] == [(1, 0, True), (2, 0, True), (3, 1, False)]


def test_examples_longer_than_a_row(tiny_run, run_here, tmp_path, capsys):
  config = tiny_config(sft__row_length=64)
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE_SFT)
  assert "config.sft.row_length: 64 is too short for " in refuse(run_here, config, run, capsys)


@pytest.mark.slow
def test_an_rl_run_in_which_no_answers_differ(tiny_run, run_here, tmp_path, capsys):
  # Nearly greedy answers of a group are the same, and earn the same.
  config = tiny_config(rl__temperature=1e-6, rl__max_rounds=1, rl__max_skips=2)
  run = continue_from(tiny_run, tmp_path / "run", config, (*BEFORE_SFT, "sft"))
  assert run_here(config, run, ["rl"]) == 1
  error = capsys.readouterr().err
  assert error.startswith("ERROR: no group carried a signal in 2 steps in a row, so nothing was learnt: of 4 groups ")
  assert "raise the temperature or the group size" in error
