"""The manifest of a run's policies: written by stages, read in their order, and found by stage."""

import dataclasses
import json

import pytest
from toy_runs import COMMAND, DATA, RL, finish, make_config, need

from gr2_jax.runs.life import open_stage
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, find_policy, read_policies, write_policies
from gr2_jax.runs.run import RunError, begin_run

TAUGHT = PolicyRecord("data", (RankerRecord("sft", "SFT policy", "reason"),), prior=True)
DIRECT = PolicyRecord("data", (RankerRecord("sft_direct", "SFT without reasoning", "direct"),), checkpoints="without_reasoning")
SCORES = RankerRecord("scores", "one pass", "score", against=("sft", "sft_direct"))
PRUNED = PolicyRecord("rl", (SCORES, RankerRecord("pruned", "pruned policy", "direct", trained=False)), layers=2)
CUT = dataclasses.replace(PRUNED, kept=(0, 2))  # as it is read


@pytest.fixture
def run(tmp_path):
  """Its stage `rl` comes before `data`."""
  run = begin_run(tmp_path, make_config(), COMMAND)
  finish(run, need(DATA, 7, policies=lambda config: (TAUGHT, DIRECT)))
  finish(run, need(RL, 3, policies=lambda config: (PRUNED,)))
  run.path("rl", "layers.json").write_text('{"kept": [0, 2]}')
  return run


def test_records_come_back_whole_in_the_order_of_the_stages(run):
  assert read_policies(run) == [CUT, TAUGHT, DIRECT]
  assert PRUNED.mode == "score" and TAUGHT.mode == "reason"
  assert PRUNED.trained == ("score",) and TAUGHT.trained == ("reason",)


def test_of_a_manifest_that_does_not_say_what_was_trained_the_first_mode_was(run):
  path = run.path("rl", "policies.json")
  records = json.loads(path.read_text())
  for ranker in records[0]["rankers"]:
    del ranker["trained"]
  path.write_text(json.dumps(records))
  assert find_policy(run, "rl") == CUT


def test_a_stage_without_policies_has_no_part_and_one_that_is_not_finished_counts_not(tmp_path):
  run = begin_run(tmp_path, make_config(), COMMAND)
  finish(run, need(DATA))
  with pytest.raises(RuntimeError), open_stage(run, need(RL, 1)):
    write_policies(run, "rl", [PRUNED])
    raise RuntimeError
  assert read_policies(run) == []


def test_the_first_policy_of_a_stage_is_found(run):
  assert find_policy(run, "data") == TAUGHT and find_policy(run, "rl") == CUT
  with pytest.raises(RunError, match=r"stage: .*'opd'.*: rl, data"):
    find_policy(run, "opd")


@pytest.mark.parametrize("text", ["[{", '[{"stage": "rl"}]', '{"a": 1}'])
def test_a_damaged_part_names_the_stage(run, text):
  run.path("rl", "policies.json").write_text(text)
  with pytest.raises(RunError, match=r"rl/policies\.json is damaged.*run the stage 'rl' again"):
    read_policies(run)


def test_a_run_without_any_policy_says_so(tmp_path):
  with pytest.raises(RunError, match=r"stage: .*name another run"):
    find_policy(begin_run(tmp_path, make_config(), COMMAND), "rl")


def test_a_cut_policy_of_unknown_layers_names_the_file(run):
  run.path("rl", "layers.json").unlink()
  with pytest.raises(RunError, match=r"rl/layers\.json is missing or damaged .*run 'rl' again"):
    read_policies(run)
