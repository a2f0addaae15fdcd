"""Scored policies that learn from a teacher, through the program: distilled from another run's, and pruned, up to card and serving."""

import json

import numpy as np
import pytest
from small_runs import ROOT, continue_from

from experiments.check import check_values
from experiments.flags import load_config
from gr2_jax.errors import ConfigError
from gr2_jax.runs.load import load_catalogue, load_slates
from gr2_jax.runs.policies import find_policy, read_policies
from gr2_jax.runs.run import Run
from gr2_jax.serving.request import Request
from gr2_jax.serving.reranker import Reranker

BEFORE = ("data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft")


def make_config(teacher, **changes):
  config = load_config(str(ROOT / "configs" / "quickstart.py") + ":tiny")
  opd = {"rl__init": "opd", "opd__init": "sft", "opd__teacher_run": str(teacher), "opd__teacher_stage": "sft", "answer__texts": True}
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in (opd | changes).items()})
  return config


@pytest.fixture(scope="module")
def finished(scored_run, run_here, tmp_path_factory):
  """A run whose prior reasons as its teacher does, and whose pruned policy answers at once, as the one that was cut."""
  training = {"opd__steps": 3, "opd__optimizer__warmup_steps": 0, "opd__optimizer__learning_rate": 1e-2}
  config = make_config(scored_run, prune__enabled=True, prune__init="direct", **training)
  run = continue_from(scored_run, tmp_path_factory.mktemp("scored_opd") / "run", config, BEFORE)
  assert run_here(config, run) == 0
  return run


def metrics(run, stage):
  return [json.loads(line) for line in (run / "metrics" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_student_that_is_its_teacher_differs_once_it_has_learnt_from_rewards(finished):
  """The teacher is the SFT policy, from which the student starts."""
  lines = metrics(finished, "opd")
  np.testing.assert_allclose([line["beta"] for line in lines], [0.5, 0.275, 0.05], rtol=1e-5)
  assert abs(lines[0]["reverse_kl"]) < 1e-5 and abs(lines[0]["reverse_kl_reasoning"]) < 1e-5
  assert lines[-1]["reverse_kl"] > 1e-4 and lines[-1]["reverse_kl_reasoning"] > 1e-4
  assert all(line["valid_rate"] == 1 and line["skipped"] == 0 for line in lines)
  assert len(metrics(finished, "opd_validation")) == 4  # the start among them


@pytest.mark.slow
def test_a_pruned_policy_learns_from_the_whole_one(finished):
  layers = json.loads((finished / "prune" / "layers.json").read_text())
  assert layers["kept"] == [int(np.argmax(layers["influence"]))] and len(layers["influence"]) == 2
  lines = metrics(finished, "prune")  # a policy of a few steps may lose no more by a layer than rounding does
  assert all(line["reverse_kl"] > -1e-6 and line["beta"] == 1 for line in lines)


@pytest.mark.slow
def test_both_are_listed_measured_and_served(finished):
  run = Run.open(finished)
  found = {policy.rankers[0].name: (policy.stage, policy.mode, policy.form, policy.layers, policy.prior) for policy in read_policies(run)}
  assert found["opd"] == ("opd", "reason", "scored", None, True) and found["pruned"] == ("prune", "score", "scored", 1, False)
  results = json.loads((finished / "evaluation" / "results.json").read_text())
  assert {"opd_vs_upstream", "policy_vs_opd", "pruned_vs_direct"} <= set(results["paired"])
  assert results["diagnostics"]["opd"]["valid_rate"] == results["diagnostics"]["pruned"]["valid_rate"] == 1
  card = (finished / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "| OPD policy |" in card and "| pruned policy |" in card and "RL policy over OPD policy" in card
  assert "the OPD policy that it started from" in " ".join(card.split())
  slates = load_slates(run, load_catalogue(run), "test")[:8]
  requests = [
    Request(s.history, s.candidates, upstream_scores=s.upstream_scores, timestamp=s.timestamp, last_time=s.last_time) for s in slates
  ]
  for stage, name in (("opd", "opd"), ("prune", "pruned")):
    lines = (finished / "evaluation" / f"answers_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rankings = Reranker.load(finished, stage=stage).rank_batch(requests)
    assert [list(ranking.order) for ranking in rankings] == [json.loads(line)["order"] for line in lines[:8]]
  assert find_policy(run, "prune").layers == 1


BAD = {
  "another form of answers": ({"prompt__direct": True}, "after a reasoning by facts and texts of 10 past items, and this config's are"),
  "other texts": ({"answer__past": 3}, "by facts and texts of 3 past items"),
}


@pytest.mark.parametrize("changes, told", BAD.values(), ids=BAD)
def test_a_teacher_that_answers_otherwise_is_refused_before_anything_runs(scored_run, in_process, changes, told):
  with in_process():
    check_values(make_config(scored_run))
    with pytest.raises(ConfigError, match=rf"^--config\.opd\.teacher_run: .*{told}"):
      check_values(make_config(scored_run, **changes))


def test_a_teacher_of_other_slates_is_refused(scored_run, run_here, tmp_path, capsys):
  teacher = continue_from(scored_run, tmp_path / "teacher", Run.open(scored_run).config, ("tokenize", "evidence", "slates", "sft"))
  (teacher / "slates" / "train.jsonl.gz").write_bytes((teacher / "slates" / "validation.jsonl.gz").read_bytes())
  done = json.loads((teacher / "slates" / "done.json").read_text())
  (teacher / "slates" / "done.json").write_text(json.dumps(done | {"outputs": {}}))
  config = make_config(teacher)
  run = continue_from(scored_run, tmp_path / "run", config, BEFORE)
  assert run_here(config, run, ["opd"]) == 1
  assert "has other training slates than" in capsys.readouterr().err
