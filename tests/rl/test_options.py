"""Settings that cannot hold are refused with the key that is at fault; sections of a config become the typed records."""

import math

import pytest

from configs.base import base
from experiments.stages.opd import OpdStageOptions
from experiments.stages.rl import RlStageOptions
from gr2_jax.errors import ConfigError
from gr2_jax.objectives.policy import DAPO
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rl.options import CollectOptions, RlOptions, RolloutOptions, read_rollout_options
from gr2_jax.settings import read_record
from gr2_jax.steps.policy import UpdateConfig


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("prompts", 0),
    ("group", 0),
    ("max_new_tokens", 0),
    ("temperature", 0.0),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("presentation", "sorted"),
    ("decode_prompts", 0),
    ("decode_rows", 0),
    ("decode_rows", 9),
  ],
)
def test_how_a_policy_is_asked(name, value):
  with pytest.raises(ValueError, match=f"^{name}: "):
    RolloutOptions(**{name: value})


@pytest.mark.parametrize(
  ("name", "value"), [("overlong_zone", -1), ("overlong_zone", 49), ("max_rounds", 0), ("min_filled", 0.0), ("min_filled", 1.1)]
)
def test_which_groups_become_a_batch(name, value):
  with pytest.raises(ValueError, match=f"^{name}: "):
    CollectOptions(**{name: value})


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("group", {"collect": CollectOptions(RolloutOptions(group=1))}),
    ("prompts", {"update": UpdateConfig(minibatches=3)}),
    ("prompts", {"update": UpdateConfig(minibatches=4, microbatches=8)}),
  ],
)
def test_what_is_learnt(name, options):
  with pytest.raises(ValueError, match=name):
    RlOptions(**options)


def test_values_at_their_limits_hold():
  RolloutOptions(prompts=1, group=1, max_new_tokens=1, decode_prompts=1, decode_rows=1, presentation="upstream")
  CollectOptions(RolloutOptions(max_new_tokens=8), overlong_zone=8, max_rounds=1, min_filled=1.0)
  RlOptions(update=UpdateConfig(minibatches=4, microbatches=4))


def read(key, kind=RlStageOptions, **changes):
  """The record of a section of the defaults, with changes by dotted key."""
  config = base()
  config[key].update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
  return read_record(kind, config, key)


def test_the_defaults_of_a_section_are_those_of_the_records():
  assert read("rl").groups.to_rl(48) == RlOptions()
  assert read("opd", OpdStageOptions).collect(48).rollout == RolloutOptions()


def test_a_section_becomes_the_record():
  section = read(
    "rl", prompts=8, temperature=0.7, decode_rows=2, minibatches=2, packed_rows=3, loss__clip_high=0.3, max_rounds=1, reward__alpha=0.5
  )
  options = section.groups.to_rl(12)
  assert options.collect.rollout == RolloutOptions(prompts=8, temperature=0.7, decode_rows=2, max_new_tokens=12)
  assert options.collect.max_rounds == 1 and options.reward == RewardConfig(alpha=0.5)
  assert (options.update.minibatches, options.update.packed_rows, options.update.loss.clip_high) == (2, 3, 0.3)
  assert options.update.temperature == 0.7, "the loss is of the rollout's temperature"
  assert options.update.loss.importance_cap is None and options.update.loss.clip_low == DAPO.clip_low
  assert read_rollout_options(section.groups, 12, group=1, decode_rows=None).group == 1


def test_a_reward_of_ones_own_is_named_in_the_section():
  assert read("rl").groups.reward.load() == RewardConfig()
  with pytest.raises(ConfigError, match=r"reward\.fn"):
    read("rl", reward__fn="nowhere:reward").groups.reward.load()
