"""Stages: their order, and which of them a config needs."""

import pytest
from toy_runs import leave_policy, make_config, write

from gr2_jax.runs.run import RunError
from gr2_jax.runs.stages import Init, Stage, needed_stages, sort_stages


def stage(name, *inputs, **declared):
  return Stage(name, write, reads=("seed",), inputs=inputs, **declared)


def names(stages):
  return [stage.name for stage in stages]


# Order.


def test_each_stage_comes_after_all_that_it_may_read():
  stages = [
    stage("report", "data", uses_policies=True),
    stage("tune", "data", init=Init("tune.init", ("teach", "base")), policies=leave_policy),
    stage("teach", "base", policies=leave_policy),
    stage("base", "data", uses=("extra",)),
    stage("extra"),
    stage("data"),
  ]
  expected = ["data", "extra", "base", "teach", "tune", "report"]
  assert names(sort_stages(stages)) == names(sort_stages(reversed(stages))) == expected


def test_stages_free_to_choose_come_by_name_and_unknown_inputs_hold_nothing_up():
  assert names(sort_stages([stage("c"), stage("a", "elsewhere"), stage("b")])) == ["a", "b", "c"]


def test_stages_that_wait_for_each_other_are_named():
  with pytest.raises(RunError, match="a, b"):
    sort_stages([stage("a", "b"), stage("b", "a"), stage("c")])


def test_a_stage_that_leaves_a_policy_and_reads_policies_does_not_wait_for_itself():
  assert names(sort_stages([stage("b", uses_policies=True, policies=leave_policy), stage("a", policies=leave_policy)])) == ["a", "b"]


# What a config needs.

PIPELINE = (
  stage("data"),
  stage("teach", "data", policies=leave_policy),
  stage("shorten", "data", when="data.source"),
  stage("rl", "data", init=Init("rl.init", ("data", "teach")), policies=leave_policy),
  stage("last", "rl", uses=("shorten",), uses_policies=True),
)


def needed(**changes):
  config = make_config()
  config.rl.init = "teach"
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return {one.name: one for one in needed_stages(PIPELINE, config)}


def test_what_leads_to_the_last_stage_is_needed_and_what_the_config_asks_for():
  found = needed(data__source="")
  assert list(found) == ["data", "teach", "rl", "last"]
  assert found["rl"].inputs == ("data", "teach") and found["last"].inputs == ("rl", "teach")
  assert list(needed(data__source="", rl__init="data")) == ["data", "rl", "last"]
  assert needed(data__source="", rl__init="data")["last"].inputs == ("rl",)
  asked = needed()
  assert list(asked) == ["data", "teach", "shorten", "rl", "last"] and set(asked["last"].inputs) == {"rl", "shorten", "teach"}
  assert [one.place for one in found.values()] == [0, 1, 3, 4], "places are among all stages, whatever is left out"


@pytest.mark.parametrize("init", ["teacher", "shorten"])
def test_a_stage_that_starts_from_no_stage(init):
  with pytest.raises(RunError, match=r"rl\.init"):
    needed(rl__init=init)


def test_a_config_without_the_key_that_names_the_start():
  with pytest.raises(RunError, match=r"rl\.init"):
    needed_stages(PIPELINE, make_config())


def test_an_input_that_is_no_stage():
  with pytest.raises(RunError, match="'nowhere'"):
    needed_stages([stage("data", "nowhere")], make_config())
