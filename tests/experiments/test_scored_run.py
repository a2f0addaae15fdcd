"""A run of scored answers: every stage trains, and its card tells of both lines, of RL's control and of the facts."""

import json

import pytest

from gr2_jax.runs.policies import read_policies
from gr2_jax.runs.run import Run


@pytest.fixture(scope="module")
def results(scored_run):
  return json.loads((scored_run / "evaluation" / "results.json").read_text())


def test_every_training_has_its_steps_and_keeps_its_best(scored_run):
  for stage, name, steps in (("sft", "checkpoints", 3), ("rl", "checkpoints", 2), ("rl", "control", 2), ("direct", "checkpoints", 2)):
    metrics = stage if name == "checkpoints" else f"{stage}_{name}"
    scores = [json.loads(line)["score"] for line in (scored_run / "metrics" / f"{metrics}_validation.jsonl").read_text().splitlines()]
    assert len(scores) == steps + 1  # the start among them
    kept = [int(path.name) for path in (scored_run / stage / name).iterdir() if path.name.isdigit()]
    assert max(kept) == scores.index(max(scores))


def test_what_a_stage_leaves_says_how_it_answers(scored_run):
  policies = read_policies(Run.open(scored_run))
  found = {policy.rankers[0].name: (policy.stage, policy.checkpoints, policy.mode, policy.form) for policy in policies}
  assert found == {
    "sft": ("sft", "checkpoints", "reason", "scored"),
    "policy": ("rl", "checkpoints", "reason", "scored"),
    "rl_control": ("rl", "control", "reason", "scored"),
    "direct": ("direct", "checkpoints", "score", "scored"),
  }


def test_results_hold_every_row_the_line_that_validation_chose_and_its_facts(scored_run, results):
  trained, others = {"sft", "rl_control", "policy", "direct"}, {"upstream", "midtrain", "lambdamart", "lambdamart_all", "oracle"}
  assert trained | others | {"prm", "listwise_mlp", "bayes"} <= set(results["orders"])
  assert {f"{name}_vs_{other}" for name in trained for other in ("prm", "listwise_mlp")} <= set(results["paired"])
  assert {"policy_vs_sft", "policy_vs_rl_control", "direct_vs_lambdamart_all"} <= set(results["paired"])
  assert results["main_line"] == max(("policy", "direct"), key=results["validation"].__getitem__)
  facts = results["importance"][results["main_line"]]
  assert "lm_score" in facts and sorted(facts, key=lambda name: -facts[name]["delta"])[0] == next(iter(facts))
  valid = {name: results["diagnostics"][name]["valid_rate"] for name in ("sft", "policy", "direct")}
  assert set(valid.values()) == {1.0}
  card = (scored_run / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "| Bayes order |" in card and "knows the market and not the user" in card and "| PRM |" in card
  assert "## Evidence" in card and f"`{next(iter(facts))}`" in card


def test_results_say_what_reasonings_are_worth(scored_run, results):
  assert set(results["reasons"]) == {"sft", "policy", "rl_control"}  # the direct policy gives none
  policy = results["reasons"]["policy"]
  assert policy["slates"] == results["n"] and 0 <= policy["named_first"]["share"] <= 1
  lines = [json.loads(line) for line in (scored_run / "evaluation" / "answers_policy.jsonl").read_text(encoding="utf-8").splitlines()]
  assert policy["facts"] == pytest.approx(sum(len(line["statements"]) for line in lines) / len(lines))
  assert policy["no_fact"] == pytest.approx(sum(not line["statements"] for line in lines) / len(lines))
  assert policy["named_first"]["share"] == pytest.approx(sum(line["named"] == line["order"][0] for line in lines) / len(lines))
  assert "## Reasons" in (scored_run / "evaluation" / "card.md").read_text(encoding="utf-8")


def test_a_policy_that_reasons_writes_its_reasoning_and_no_order(scored_run):
  lines = [json.loads(line) for line in (scored_run / "evaluation" / "answers_policy.jsonl").read_text(encoding="utf-8").splitlines()]
  assert all(sorted(line["order"]) == sorted(line["candidates"]) and line["completion"] for line in lines)
  direct = (scored_run / "evaluation" / "answers_direct.jsonl").read_text(encoding="utf-8").splitlines()
  assert all(json.loads(line)["completion"] == "" for line in direct)
