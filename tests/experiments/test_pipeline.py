"""The whole program: what is done is kept, what was stopped goes on exactly, other values are refused, and every path through it runs."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from forked_programs import run_program
from small_runs import ROOT, continue_from, final_state, hash_files, tiny_config

from gr2_jax.data.jsonl import read_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import SPLITS
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation import baselines
from gr2_jax.evaluation.results import RankerAnswers, build_results
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features
from gr2_jax.runs.run import Run
from gr2_jax.teachers.tree import fit_lambdamart, lambdamart_scores

STAGES = ("data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft", "rl", "evaluation")


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


# The same command again.


def test_the_same_command_again_skips_every_stage_and_writes_nothing(tiny_run, run_here, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  before = hash_files(run)
  assert run_here(tiny_config(), run) == 0
  told = capsys.readouterr().out
  assert all(f"{stage}: done before in" in told for stage in STAGES)
  log = run / "command.txt"  # one more line is all that is new
  assert log.read_bytes().startswith(before.pop(log)[0])
  after = hash_files(run)
  del after[log]
  assert after == before


def test_stages_of_other_values_are_refused_with_what_differs(tiny_run, run_here, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  before = hash_files(run)
  assert run_here(tiny_config(rl__loss__clip_high=0.3, data__market__num_items=130), run) == 1
  error = capsys.readouterr().err
  assert error.startswith(f"ERROR: {run}: data, rl were made with other values; nothing was overwritten.")
  differing = ["  data, finished: config.data.market.num_items: 120 -> 130", "  rl, finished: config.rl.loss.clip_high: 0.28 -> 0.3"]
  assert [line for line in error.splitlines() if "config." in line and "inputs" not in line] == differing
  assert hash_files(run) == before


def test_stages_that_are_missing_are_done_and_the_others_kept(tiny_run, run_here, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(tiny_run, run)
  shutil.rmtree(run / "slates")
  before = {stage: hash_files(run / stage) for stage in STAGES}
  assert run_here(tiny_config(), run) == 0
  assert "traces: done before" in capsys.readouterr().out
  assert {stage: hash_files(run / stage) for stage in STAGES if stage != "slates"} == {s: f for s, f in before.items() if s != "slates"}
  for split in SPLITS:
    name = f"{split}.jsonl.gz"
    assert (run / "slates" / name).read_bytes() == (tiny_run / "slates" / name).read_bytes()


# Stopped and continued.


def program(run, environment, *flags):
  command = [sys.executable, "-m", "experiments.run", "--config=configs/written.py:tiny", f"--workdir={run}", *flags]
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code):
  out, error = process.communicate(timeout=300)
  assert process.returncode == code, error[-3000:]
  return out, error


def stop_at(process, metrics, lines):
  """Sends SIGTERM as soon as the stage has written `lines` metrics."""
  while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= lines):
    time.sleep(0.005)
  process.send_signal(signal.SIGTERM)
  _, error = finish(process, 143)
  assert "SIGTERM: saving, then stopping" in error
  assert "stopped by SIGTERM; the same command goes on from here" in error


def lines_without_time(path):
  return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_never_stopped(tiny_run, program_environment, tmp_path):
  flags = ["--config.sft.steps=60", "--config.sft.save_every=25", "--config.rl.steps=12", "--config.rl.save_every=5", "--stages=sft,rl"]
  config = tiny_config(sft__steps=60, sft__save_every=25, rl__steps=12, rl__save_every=5)
  whole, parts = (continue_from(tiny_run, tmp_path / name, config, STAGES[:6]) for name in ("whole", "parts"))
  finish(program(whole, program_environment, *flags), 0)

  stop_at(program(parts, program_environment, *flags), parts / "metrics" / "sft.jsonl", 3)
  stopped = max(int(p.name) for p in (parts / "sft" / "checkpoints").iterdir())
  assert 3 <= stopped < 60  # saved when the signal came, not at the next multiple of 25
  assert not (parts / "sft" / "done.json").exists()
  assert not (parts / "rl").exists()

  stop_at(program(parts, program_environment, *flags), parts / "metrics" / "rl.jsonl", 2)
  assert (parts / "sft" / "done.json").exists()
  assert 2 <= max(int(p.name) for p in (parts / "rl" / "checkpoints").iterdir()) < 12

  out, _ = finish(program(parts, program_environment, *flags), 0)
  assert "sft: done before in" in out
  for stage in ("sft", "rl"):
    one, two = final_state(whole, stage), final_state(parts, stage)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert lines_without_time(whole / "metrics" / f"{stage}.jsonl") == lines_without_time(parts / "metrics" / f"{stage}.jsonl")


def test_a_wrong_flag_ends_before_the_run_directory_is_made(tmp_path):
  wrong = {
    "--config.rl.stepz=3": "ERROR: --config.rl.stepz: config.rl has no key 'stepz'; did you mean steps or slate?\n",
    "--config.rl.steps=3.5": "ERROR: --config.rl.steps: expected int (now 2), got float '3.5'\n",
    "--config.rl.reward.rank=mrr": "ERROR: --config.rl.reward.rank: ",
  }
  for flag, message in wrong.items():
    code, out, error = run_program("run", "--config=configs/written.py:tiny", f"--workdir={tmp_path / 'run'}", flag)
    assert code == 1 and error.startswith(message)
    assert (error.count("\n"), out) == (1, "")
    assert not (tmp_path / "run").exists()


# The other ways through the stages.


@pytest.mark.slow
def test_leave_one_out_with_slates_of_the_ctr_ranker(amazon_run):
  bad = [json.loads(line) for line in (amazon_run / "data" / "bad_lines.jsonl").read_text(encoding="utf-8").splitlines()]
  places = {(line["file"].rpartition("/")[2], line["line"]) for line in bad}
  broken = {("items.jsonl", 120), ("interactions.jsonl", 7), ("interactions.jsonl", 9)}
  assert broken <= places
  others = [line for line in bad if (line["file"].rpartition("/")[2], line["line"]) not in broken]
  assert others and all("unknown item 'item0119'" in line["reason"] for line in others)  # what the lost item took along
  events = [line for line in others if line["left_out"] == "event"]
  counts = read_json(amazon_run / "data" / "counts.json")
  assert events and counts["items"] == 119
  assert counts["users"] == 170 - sum("interactions" in line["file"] and line["left_out"] == "line" for line in bad)

  report = read_json(amazon_run / "slates" / "report.json")
  assert report["source"] == "ctr"
  assert all(0 < of["retrieved"] < of["requests"] for of in report["retrieved"].values())
  assert {split: of["retrieved"] for split, of in report["retrieved"].items()} == report["slates"]
  results = read_json(amazon_run / "evaluation" / "results.json")
  assert results["n"] == report["slates"]["test"]
  assert results["orders"]["oracle"]["recall@1"] == 1.0  # real slates have no utilities: the oracle is the labels
  histories = [slate.history for split in SPLITS for slate in read_slates(amazon_run / "slates" / f"{split}.jsonl.gz", None)]
  assert max(map(len, histories)) <= Run.open(amazon_run).config.data.max_history
  card = (amazon_run / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert f"| bad lines left out | {len(bad) - len(events)} (data/bad_lines.jsonl) |" in card
  assert f"| bad events left out | {len(events)} (data/bad_lines.jsonl) |" in card


@pytest.mark.parametrize(("answer", "reference"), [("json", "slot"), ("json", "sid"), ("compact", "slot")])
def test_every_answer_form_is_taught(answer, reference, tiny_run, run_here, tmp_path):
  config = tiny_config(prompt__answer=answer, prompt__reference=reference, decoding__constraint="none", sft__row_length=512, sft__steps=1)
  run = continue_from(tiny_run, tmp_path / "run", config, STAGES[:5])
  assert run_here(config, run, ["traces", "sft"]) == 0
  assert read_json(run / "traces" / "acceptance.json")["accepted"] > 0
  line = lines_without_time(run / "metrics" / "sft.jsonl")[0]
  assert np.isfinite([line["nll_reasoning"], line["nll_answer"]]).all()


PATHS = {
  "beam": (3, {"slates__source": "beam", "slates__beams": 12, "sft__row_length": 352}),
  "json": (5, {"prompt__answer": "json", "decoding__constraint": "none", "sft__row_length": 512, "decoding__max_new_tokens": 160}),
  "free answers, v1 reward": (6, {"decoding__constraint": "none", "rl__reward__rank": "promotion", "rl__reward__condition": "v1"}),
  "graded labels, NDCG reward": (0, {"data__market__labels": "graded", "rl__reward__rank": "ndcg", "sft__row_length": 352}),
  "targeted traces": (5, {"traces__sampling": "targeted", "sft__presentation": "upstream", "rl__presentation": "upstream"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_every_path_reaches_the_card(path, tiny_run, run_here, tmp_path):
  done, changes = PATHS[path]
  config = tiny_config(**changes)
  run = continue_from(tiny_run, tmp_path / "run", config, STAGES[:done])
  assert run_here(config, run) == 0
  results = read_json(run / "evaluation" / "results.json")
  assert results["orders"]["oracle"]["ndcg@3"] > results["orders"]["random"]["ndcg@3"]
  assert (run / "evaluation" / "card.md").exists()


# A check of the evaluation itself.


@pytest.fixture(scope="module")
def measured():
  """`measure(train, test)`: paired lift of LambdaMART over the upstream order, fitted and tested on labels as they are or shuffled."""
  market = make_market(MarketConfig(num_items=150, train_slates=700, validation_slates=200, test_slates=700), seed=0)
  words = sorted({word for item in market.catalogue.items for word in item.title.split()})
  vectors = np.array([[word in item.title.split() for word in words] for item in market.catalogue.items], np.float32)
  counts, items = LogCounts.fit(market.histories, market.catalogue), ItemArrays.of(market.catalogue, vectors)
  features = {split: slate_features(market.slates[split], market.catalogue, counts, items) for split in SPLITS}
  labels = {split: slate_labels(market.slates[split]) for split in SPLITS}
  rng = np.random.default_rng(7)
  shuffled = {split: rng.permuted(values, axis=1) for split, values in labels.items()}

  def measure(fitted_on, tested_on):
    fit = shuffled if fitted_on == "shuffled" else labels
    test = (shuffled if tested_on == "shuffled" else labels)["test"]
    model = fit_lambdamart(features["train"], fit["train"], features["validation"], fit["validation"], seed=0)
    rankings = {
      "upstream": baselines.upstream_ranking(test),
      "lambdamart": baselines.rank_by_scores(lambdamart_scores(model, features["test"]), test, "lambdamart"),
    }
    rankers = {name: RankerAnswers.of(ranking) for name, ranking in rankings.items()}
    results = build_results(dataset="control", seeds=[0], labels=test, rankers=rankers, resamples=2000)
    return results["paired"]["lambdamart_vs_upstream"]

  return measure


METRICS = ("recall@1", "recall@3", "ndcg@3", "mrr")


def test_true_labels_show_a_lift(measured):
  lift = measured("true", "true")
  assert all(lift[metric]["delta_ci95"][0] > 0.05 for metric in METRICS)


@pytest.mark.parametrize(("fitted_on", "tested_on"), [("shuffled", "shuffled"), ("true", "shuffled"), ("shuffled", "true")])
def test_shuffled_labels_show_none(measured, fitted_on, tested_on):
  # Labels that say nothing can be neither learnt from nor ranked well: an interval above 0 would be the evaluation's own doing.
  lift = measured(fitted_on, tested_on)
  assert all(lift[metric]["delta_ci95"][0] <= 0 for metric in METRICS)
