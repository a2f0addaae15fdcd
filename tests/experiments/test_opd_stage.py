"""On-policy distillation as a stage: from another run's policy to the card, stopped and continued, and refused for other semantic IDs."""

import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from rich.console import Console
from small_runs import continue_from, tiny_config
from test_pipeline import final_state, lines_without_time, read_json

from gr2_jax.runs import policy_training
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run
from gr2_jax.runs.teacher import load_teacher
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

DONE = ("data", "tokenize", "midtrain", "slates", "evidence")  # as in the teacher's run, of the same size here
STEPS = 3


def opd_config(teacher, **changes):
  return tiny_config(rl__init="opd", opd__teacher_run=str(teacher), opd__steps=STEPS, opd__save_every=2, **changes)


@pytest.fixture(scope="module")
def finished(tiny_run, run_here, tmp_path_factory):
  """(a finished run, what it told)."""
  config = opd_config(tiny_run)
  run = continue_from(tiny_run, tmp_path_factory.mktemp("opd") / "run", config, DONE)
  assert run_here(config, run) == 0
  return run


@pytest.mark.slow
def test_the_run_leaves_out_traces_and_sft_and_evaluates_the_distilled_policy(finished, tiny_run, run_here, capsys):
  assert not (finished / "traces").exists() and not (finished / "sft").exists()
  lines = lines_without_time(finished / "metrics" / "opd.jsonl")
  assert [line["step"] for line in lines] == [1, 2, 3]
  np.testing.assert_allclose([line["beta"] for line in lines], [0.5, 0.275, 0.05], rtol=1e-5)
  for line in lines:
    assert line["reverse_kl"] > 0 and np.isfinite(line["loss"]) and line["logp_gap"] < 1e-4
    assert line["kept_fraction"] == line["rounds"] == 1  # groups of equal rewards have something to learn too
  results = read_json(finished / "evaluation" / "results.json")
  assert {"opd", "policy"} <= set(results["orders"]) and "sft" not in results["orders"]
  assert {"opd_vs_upstream", "policy_vs_opd"} <= set(results["paired"])
  card = (finished / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "| OPD policy |" in card and "RL policy over OPD policy" in card and "plots/opd.png" in card
  reads = read_json(finished / "opd" / "done.json")["reads"]
  assert reads["runs"] == {"opd.teacher_run": read_json(tiny_run / "rl" / "done.json")["fingerprint"]}
  assert "opd" in read_json(finished / "rl" / "done.json")["reads"]["inputs"]

  assert run_here(opd_config(tiny_run), finished) == 0
  told = " ".join(capsys.readouterr().out.split())
  assert "not needed by this config, skipped: traces, sft" in told and "opd: done before in" in told


@pytest.mark.slow
def test_a_stopped_distillation_ends_as_if_it_had_never_stopped(finished, tiny_run, run_here, tmp_path, monkeypatch, capsys):
  config = opd_config(tiny_run)
  run = continue_from(tiny_run, tmp_path / "run", config, DONE)
  real_step = policy_training.rl_step

  def stop_at_the_second_step(state, *of):
    if int(state.step) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return real_step(state, *of)

  monkeypatch.setattr(policy_training, "rl_step", stop_at_the_second_step)
  assert run_here(config, run, ["opd"]) == 143
  assert not (run / "opd" / "done.json").exists() and (run / "opd" / "checkpoints" / "2").exists()
  monkeypatch.undo()
  assert run_here(config, run, ["opd"]) == 0
  jax.tree.map(np.testing.assert_array_equal, final_state(finished, "opd"), final_state(run, "opd"))
  assert lines_without_time(finished / "metrics" / "opd.jsonl") == lines_without_time(run / "metrics" / "opd.jsonl")


@pytest.fixture
def teacher(tiny_run, tmp_path):
  """A copy of what a teacher's run must hold, to be changed."""
  for name in ("tokenize", "rl"):
    shutil.copytree(tiny_run / name, tmp_path / "teacher" / name)
  shutil.copy(tiny_run / "config.json", tmp_path / "teacher")
  return tmp_path / "teacher"


def test_a_teacher_with_other_semantic_ids_is_refused_and_can_be_exchanged(teacher, tiny_run, run_here, tmp_path, capsys):
  table = SemanticIDTable.load(teacher / "tokenize" / "sids.npz")
  SemanticIDTable(table.codes[::-1], table.codebook_size).save(teacher / "tokenize" / "sids.npz")
  config = opd_config(teacher)
  run = continue_from(tiny_run, tmp_path / "run", config, DONE)
  assert run_here(config, run, ["opd"]) == 1
  assert f"config.opd.teacher_run: {teacher} differs from {run} in tokenize/sids.npz" in capsys.readouterr().err
  assert not (run / "opd" / "started.json").exists()


def test_a_teacher_that_was_trained_on_other_prompts_is_told(teacher, tiny_run, in_process):
  config = json.loads((teacher / "config.json").read_text())
  config["prompt"]["max_history"] = 7
  (teacher / "config.json").write_text(json.dumps(config))
  told = io.StringIO()
  stage = StageContext(Run(tiny_run, opd_config(teacher)), "opd", Progress(Console(file=told, width=200)), StopSignal())
  with in_process():
    decoder, params = load_teacher(stage)
  assert "opd: the teacher was trained otherwise, prompt.max_history: 7 -> 12" in told.getvalue()
  assert params["embedding"].shape == (stage.vocabulary.size, decoder.config.width)


def test_a_teacher_that_is_not_there_is_told_before_the_run_begins(run_here, tmp_path, capsys):
  assert run_here(opd_config(tmp_path / "nowhere"), tmp_path / "run") == 1
  assert f"--config.opd.teacher_run: {tmp_path / 'nowhere'} has no finished stage 'rl'; run that first" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
