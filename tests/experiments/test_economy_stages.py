"""Answers without reasoning, one-pass scores and pruned layers, through the program: every method trains, and the card tells of all."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import continue_from, tiny_config

from gr2_jax.data.jsonl import read_slates
from gr2_jax.rollout.rerank import append_reasoning
from gr2_jax.runs.load import load_policy
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run
from gr2_jax.serving.request import Request
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.training.mesh import make_mesh

BEFORE = ("data", "tokenize", "midtrain", "slates", "evidence", "traces", "sft", "rl")
# The second pass by reinforcement learning and its controls; distillation is in the test of the card.
METHODS = {
  "rl": {},
  "rl from the mid-trained model": {"direct__init": "midtrain"},
  "sft": {"direct__method": "sft", "direct__max_slates": 12},
  "scores": {"direct__method": "scores", "direct__init": "sft"},
}


def read_json(path):
  return json.loads(path.read_text(encoding="utf-8"))


def metrics(run, stage):
  return [json.loads(line) for line in (run / "metrics" / f"{stage}.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_direct_policy(method, tiny_run, run_here, tmp_path):
  config = tiny_config(direct__enabled=True, **METHODS[method])
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE)
  assert run_here(config, run, ["direct"]) == 0
  lines = metrics(run, "direct")
  assert [line["step"] for line in lines] == [1, 2] and all(line["skipped"] == 0 for line in lines)
  losses = [line["loss"] for line in lines if "loss" in line]  # an RL batch without a kept group has none
  assert np.isfinite(losses).all() and (losses or method.startswith("rl"))
  if method.startswith("rl"):
    # `<answer>`, eight semantic IDs of three codes, `</answer>` and eos: no completion has room for more.
    assert all(line["completion_length"] == 8 * 3 + 3 and line["valid_rate"] == 1 for line in lines)


@pytest.mark.slow
def test_the_card_tells_of_direct_answers_scores_and_pruning(tiny_run, run_here, tmp_path):
  config = tiny_config(
    sft__without_reasoning=True, direct__enabled=True, direct__steps=1, direct__method="distil", prune__enabled=True, prune__steps=1
  )
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE[:6])
  assert run_here(config, run, ["sft", "rl", "direct", "prune", "evaluation"]) == 0

  reasoned, answered = metrics(run, "sft"), metrics(run, "sft_without_reasoning")
  assert all(line["nll_reasoning"] > 0 for line in reasoned) and not any("nll_reasoning" in line for line in answered)

  assert metrics(run, "direct")[0]["loss"] > 0  # a reasoning changes what its teacher says
  layers = read_json(run / "prune" / "layers.json")
  assert layers["kept"] == [int(np.argmax(layers["influence"]))] and len(layers["influence"]) == 2
  assert metrics(run, "prune")[0]["loss"] > 0  # a pruned policy differs from its teacher

  results = read_json(run / "evaluation" / "results.json")
  assert {"sft_direct", "direct", "direct_scores", "pruned"} <= set(results["orders"])
  assert {"direct_vs_policy", "direct_scores_vs_direct", "pruned_vs_policy"} <= set(results["paired"])
  assert results["cost"]["direct"]["completion_tokens"] == 8 * 3 + 3 and results["cost"]["direct_scores"]["completion_tokens"] == 0
  assert results["diagnostics"]["direct"]["valid_rate"] == results["diagnostics"]["direct_scores"]["valid_rate"] == 1

  hard = read_json(run / "evaluation" / "hard_slates.json")
  lines = (run / "evaluation" / "answers_sft_direct.jsonl").read_text(encoding="utf-8").splitlines()
  answers = [json.loads(line) for line in lines]
  missed = [i for i, a in enumerate(answers) if not a["order"] or a["labels"][a["candidates"].index(a["order"][0])] == 0]
  assert hard["indices"] == missed and hard["n"] == len(missed) and hard["of"] == len(read_slates(run / "slates" / "test.jsonl.gz", None))
  subset = results["subsets"]["reasoning_hard"]
  assert subset["n"] == hard["n"] and subset["orders"]["sft_direct"]["recall@1"] == 0
  assert "direct_vs_policy" in subset["paired"]
  card = (run / "evaluation" / "card.md").read_text(encoding="utf-8")
  assert "**reasoning hard**" in card and "direct policy, one pass" in card and "pruned policy" in card

  check_served(run)


def check_served(run):
  """Served policies answer as the evaluation's do: scores in the default mode of none, the pruned one with the layers that are left."""
  options = Options(mode="score", modes=("score",), batch_size=8)
  reranker = Reranker.load(run, stage="direct", options=options)
  lines = (run / "evaluation" / "answers_direct_scores.jsonl").read_text(encoding="utf-8").splitlines()
  asked = [json.loads(line) for line in lines[:8]]
  slates = read_slates(run / "slates" / "test.jsonl.gz", reranker.policy.context.catalogue)[:8]
  requests = [Request(slate.history, slate.candidates, timestamp=slate.timestamp) for slate in slates]
  assert [list(ranking.order) for ranking in reranker.rank_batch(requests)] == [of["order"] for of in asked]
  assert Reranker.load(run, stage="direct").options.mode == "direct"
  saved = Run.open(run)
  pruned = load_policy(saved, find_policy(saved, "prune"), reranker.policy.context, make_mesh(devices=jax.devices()[:1]))
  assert pruned.decoder.config.num_layers == 1 and len(jax.tree.leaves(pruned.params["layers"])[0]) == 1
  assert Reranker.of_policy(pruned).options.mode == "reason"


def test_a_whole_run_without_reasoning(tiny_run, run_here, tmp_path):
  config = tiny_config(prompt__direct=True, sft__steps=1)
  run = continue_from(tiny_run, tmp_path / "run", config, BEFORE[:5])
  assert run_here(config, run, ["traces", "sft"]) == 0
  assert read_json(run / "traces" / "acceptance.json")["accepted"] > 0
  (line,) = metrics(run, "sft")
  assert line["nll_answer"] > 0 and "nll_reasoning" not in line


def test_a_teacher_reads_answers_after_what_it_said_before_its_own():
  vocabulary = SimpleNamespace(special={"answer": 9}.__getitem__, pad_id=0)
  prompts = SimpleNamespace(tokens=np.array([[1, 2, 0], [1, 2, 3], [1, 0, 0]]), mask=np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]]))
  completions = np.array([[4, 5, 9, 6], [9, 6, 8, 0], [4, 4, 4, 4]])  # the last never comes to an answer
  tokens, mask, ended = append_reasoning(prompts, completions, vocabulary)
  assert ended.tolist() == [True, True, False]
  assert [row[real > 0].tolist() for row, real in zip(tokens, mask, strict=True)] == [[1, 2, 4, 5], [1, 2, 3], [1]]
  assert (np.diff(mask, axis=1) <= 0).all() and tokens.shape == (3, 7)
