"""The programs on a finished run: a file re-ranked, and latency against quality in the card; wrong flags end in one line."""

import gzip
import json
import shutil

import pytest
from forked_programs import run_program
from small_runs import tiny_config

from experiments.stages import load_stages
from gr2_jax.data.schema import DataError
from gr2_jax.reports.card import write_card
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.serving.measure import choose_settings, find_settings, measure
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.training.progress import Progress

MEASURE = {"stages": None, "compressors": None, "modes": ["score"], "force": True, "presentations": [1, 2], "requests": 3, "batch_size": 4}
MEASURE |= {"progress": Progress()}


def test_a_file_is_ranked_and_wrong_flags_are_told(tiny_run, tmp_path):
  with gzip.open(tiny_run / "slates" / "test.jsonl.gz") as file:
    lines = file.readlines()[:5]
  source, target = tmp_path / "slates.jsonl.gz", tmp_path / "ranked.jsonl"
  source.write_bytes(gzip.compress(b"".join(lines)))
  flags = [f"--run={tiny_run}", f"--input={source}", f"--output={target}", "--batch_size=2"]
  code, out, err = run_program("rerank", *flags)
  assert code == 0 and "5/5 slates" in out, err
  records = [json.loads(line) for line in target.read_text().splitlines()]
  for line, record in zip(map(json.loads, lines), records, strict=True):
    assert record["id"] == line["user"] and sorted(record["order"]) == sorted(line["candidates"]) and not record["fallback"]
  lacking = [*flags[:2], f"--output={tmp_path / 'other.jsonl'}", "--compressor=rules"]
  wrong_flags = (
    ("rerank", flags, ("ranked.jsonl",)),
    ("rerank", lacking, ("compressor: ", "'rules'")),
    ("rerank", [*lacking[:3], "--stage=midtrain"], ("stage: ", "'midtrain'", "sft, rl")),
    ("rerank", [*lacking[:3], "--mode=score"], ("mode: ", "'score'", "reason")),
    ("serve", [], ("--run",)),
    ("latency", [f"--run={tiny_run}", "--stages=direct"], ("stage: ", "'direct'", "sft, rl")),
  )
  for name, wrong, told in wrong_flags:
    code, _, err = run_program(name, *wrong)
    assert code == 1 and err.count("ERROR: ") == 1 and all(part in err for part in told) and "Traceback" not in err, err


@pytest.mark.slow
def test_latency_stands_in_the_card(tiny_run, tmp_path):
  run, other = tmp_path / "run", tmp_path / "other"
  for folder in (run, other):
    shutil.copytree(tiny_run, folder)
  assert "experiments.latency" in write_card(run).read_text(encoding="utf-8")
  path = measure(str(run), [str(other)], **MEASURE)
  points = json.loads(path.read_text())["points"]
  assert [(point["run"], point["presentations"]) for point in points] == [(str(r), n) for r in (run, other) for n in (1, 2)]
  for point in points:
    assert 0 < point["p50_ms"] <= point["p95_ms"] and point["n"] == 24 and point["requests"] == 3
    assert (point["stage"], point["title"]) == ("rl", "RL policy")
    assert point["ci95"][0] <= point["recall@1"] <= point["ci95"][1]
    assert point["trained"] is False
  assert points[0]["recall@1"] == points[2]["recall@1"]
  results = json.loads((run / "evaluation" / "results.json").read_text())
  assert json.loads(path.read_text())["upstream"]["recall@1"] == pytest.approx(results["orders"]["upstream"]["recall@1"])
  card = write_card(run).read_text(encoding="utf-8")
  assert "(plots/latency.png)" in card and "| test (other) | RL policy | score ×2 | full |" in card


@pytest.mark.parametrize(
  ("changes", "trained"),
  [
    ({}, {"sft": ["reason"], "opd": ["reason"], "rl": ["reason"], "direct": ["direct score"], "prune": ["reason"]}),
    ({"sft__without_reasoning": True}, {"sft": ["reason", "direct"]}),
    ({"prompt__direct": True}, {"sft": ["direct"], "opd": ["direct"], "rl": ["direct"], "prune": ["direct"]}),
    ({"direct__method": "scores"}, {"direct": ["score"]}),
    ({"prune__init": "direct"}, {"prune": ["direct"]}),
  ],
)
def test_stages_say_what_their_policies_are_trained_for(changes, trained):
  config = tiny_config(**changes)
  left = {stage.name: stage.policies(config) for stage in load_stages() if stage.policies is not None}
  assert {stage: [" ".join(policy.trained) for policy in left[stage]] for stage in trained} == trained


def test_points_are_those_that_say_something():
  modes_of = {"rl": "reason", "direct": "score", "prune": "reason"}
  policies = [PolicyRecord(stage, (RankerRecord(stage, stage, mode),)) for stage, mode in modes_of.items()]
  choose = lambda modes, *presentations: choose_settings(policies, ["full", "rules"], modes, presentations, force=True)
  settings = choose(["reason", "direct", "score"], 1, 3)
  assert len(set(settings)) == len(settings) == 3 + 2 + 3 + 3 + 1
  assert not [s for s in settings if s.policy.stage == "direct" and s.mode == "reason"]
  assert {s[:3] for s in settings if s.compressor == "rules"} == {(policy, "rules", policy.mode) for policy in policies}
  assert [s for s in settings if s.presentations == 3] == [(policies[0], "full", "reason", 3)]
  assert {s.mode for s in choose(["score"], 1) if s.compressor == "rules"} == {"score"}
  assert choose(["reason"], 3) == [(policies[0], "full", "reason", 3)]
  trained = choose_settings(policies, ["full", "rules"], None, [1])
  assert [(s.policy.stage, s.mode) for s in trained if s.compressor == "full"] == list(modes_of.items())


def test_a_run_without_a_policy_to_measure_is_told(tiny_run):
  run = Run.open(tiny_run)
  named = {"modes": ["score"], "presentations": [1], "force": True}
  with pytest.raises(RunError, match="stages"):
    find_settings(run, ["direct"], None, strict=False, **named)
  with pytest.raises(RunError, match=r"compressor: .*'soft_tokens'"):
    find_settings(run, None, ["soft_tokens"], strict=True, **named)
  last = find_policy(run, "rl")
  assert find_settings(run, None, None, strict=True, **named) == [(last, "full", "score", 1)]
  assert find_settings(run, ["rl", "direct"], ["full", "soft_tokens"], strict=False, **named) == [(last, "full", "score", 1)]
  with pytest.raises(RunError, match=r"modes: .*reason, not in 'score'.*--force"):
    find_settings(run, None, None, strict=True, **named | {"force": False})
  assert find_settings(run, None, None, strict=True, modes=None, presentations=[1]) == [(last, "full", "reason", 1)]
  with pytest.raises(DataError, match=r"mode: .*'direct'.*reason"):
    Reranker.load(tiny_run, options=Options(mode="direct"))
  with pytest.raises(RunError, match=r"stage: .*'midtrain'.*sft, rl"):
    Reranker.load(tiny_run, stage="midtrain")


def test_other_slates_are_not_compared(tiny_run, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(tiny_run, other)
  path = other / "slates" / "test.jsonl.gz"
  path.write_bytes(gzip.compress(b"".join(gzip.decompress(path.read_bytes()).splitlines(keepends=True)[1:])))
  with pytest.raises(RunError, match="other test slates"):
    measure(str(tiny_run), [str(other)], **MEASURE | {"presentations": [1]})
