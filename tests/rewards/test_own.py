"""How a reward of one's own is named and marked."""

import sys
import types

import numpy as np
import pytest

from gr2_jax.errors import ConfigError
from gr2_jax.rewards.own import Rewards, describe_reward, load_reward, on_host, runs_on_host


@pytest.fixture
def module(monkeypatch):
  module = types.ModuleType("shop_rewards")
  module.clicks = lambda answers, slates: Rewards(np.zeros(1), np.zeros(1))
  module.LIMIT = 3
  monkeypatch.setitem(sys.modules, "shop_rewards", module)
  return module


def test_a_function_is_found_by_its_path(module):
  assert load_reward("shop_rewards:clicks") is module.clicks


@pytest.mark.parametrize("path", ["shop_rewards.clicks", "shop_rewards:", ":clicks", "shop rewards:clicks", "shop_rewards:a:b", ""])
def test_another_form_is_refused(module, path):
  with pytest.raises(ConfigError, match=r"reward\.fn.*package\.module:function"):
    load_reward(path)


@pytest.mark.parametrize(
  ("path", "reason"), [("no_such_shop.rewards:clicks", "no_such_shop"), ("shop_rewards:views", "views"), ("shop_rewards:LIMIT", "int")]
)
def test_what_is_missing_or_not_callable_is_named(module, path, reason):
  with pytest.raises(ConfigError, match=rf"reward\.fn.*{reason}"):
    load_reward(path)


def test_the_host_is_asked_for_and_the_function_stays_callable():
  def clicks(answers, slates):
    return answers, slates

  marked = on_host(clicks)
  assert runs_on_host(marked) and not runs_on_host(clicks)
  assert marked(1, 2) == (1, 2)
  assert describe_reward(marked) == describe_reward(clicks) and describe_reward(clicks).endswith("clicks")
