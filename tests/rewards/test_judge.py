"""The judge: by a config what `compute_rewards` gives, by a function what it returns, with shaping, filter and monitors around it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gr2_jax.data.schema import Catalogue, Item, Slate
from gr2_jax.errors import ConfigError
from gr2_jax.kernels.rank_reward.api import MIN_RAW_STD
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.rewards.judge import HostView, make_judge
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.own import Rewards, on_host
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards

LIMITS = {"max_new_tokens": 8, "overlong_zone": 4}
SETTINGS = {**LIMITS, "divide_by": "std", "keep_all": False}


class Read(NamedTuple):
  rankings: Any
  codes: Any


# Two slates, of three candidates and of two; the last answer to the second is invalid ("missing").
ANSWERS = Read(
  jnp.asarray([[[0, 1, 2], [2, 1, 0], [1, 0, 2]], [[1, 0, -1], [0, 1, -1], [-1, -1, -1]]]), jnp.asarray([[0, 0, 0], [0, 0, 2]])
)
LABELS, SHOWN = jnp.asarray([[0, 0, 1], [1, 0, -1]]), jnp.asarray([[0, 1, 2], [1, 0, 2]])
LENGTHS = np.array([[3, 6, 8], [2, 2, 8]])
MASK = jnp.asarray(np.arange(8) < LENGTHS[..., None])
INPUTS = (ANSWERS, LABELS, SHOWN, MASK)
# Free up to 4 tokens, -1 at 8.
PENALTY = np.array([[0, -0.5, -1], [0, 0, -1]], np.float32)

RECORDS = [Slate("u", ("a",), ("a", "b", "c"), (0, 0, 1)), Slate("v", ("a",), ("a", "b"), (1, 0))]
CATALOGUE = Catalogue(tuple(map(Item, "abc", "ABC")))
TEXTS = [["x", "y", "z"], ["x", "y", "z"]]
HOST = HostView(TEXTS, RECORDS, CATALOGUE)


def first_label(answers, slates):
  """The label of the candidate put first, raw, and ten times that in total; -1 where invalid."""
  labels = jnp.take_along_axis(slates.labels, answers.rankings[..., 0].clip(0), axis=-1)
  return Rewards(jnp.where(answers.valid, 10 * labels, -1), jnp.where(answers.valid, labels, -1))


FIRST_LABEL = np.array([[0, 1, 0], [0, 1, -1]], np.float32)


def mean(judgement):
  return {name: float(metric.mean()) for name, metric in judgement.monitors.items()}


@pytest.mark.parametrize("keep_all", [False, True])
def test_a_config_is_judged_by_the_ranking_reward_bit_for_bit(keep_all):
  config = RewardConfig("auc", "eq7")

  @jax.jit
  def expect(answers, labels, shown, mask):
    lengths = jnp.sum(mask, axis=-1)
    shaping = soft_overlong_penalty(lengths, *LIMITS.values())
    rewards = compute_rewards(
      config, answers.rankings, labels, shown, mask=labels >= 0, shaping=shaping, divide_by="none", keep_all=keep_all
    )
    return rewards, monitor_answers(rewards, answers.rankings, shown, lengths) | monitor_errors(answers.codes)

  judgement = make_judge(config, **LIMITS, divide_by="none", keep_all=keep_all)(*INPUTS, None)
  rewards, monitors = expect(*INPUTS)
  expected = (rewards.total, rewards.format > 0, rewards.advantages, rewards.keep, monitors)
  jax.tree.map(np.testing.assert_array_equal, tuple(judgement), expected)


@pytest.mark.parametrize("divide_by", ["std", "none"])
@pytest.mark.parametrize("keep_all", [False, True])
def test_a_function_is_shaped_normalised_and_filtered(divide_by, keep_all):
  judgement = make_judge(first_label, **LIMITS, divide_by=divide_by, keep_all=keep_all)(*INPUTS, None)
  total = np.where(FIRST_LABEL > 0, 10, FIRST_LABEL) + PENALTY
  np.testing.assert_allclose(judgement.rewards, total, atol=1e-6)
  min_raw_std = 0.0 if keep_all else MIN_RAW_STD
  advantages, keep = group_advantages(total, FIRST_LABEL, divide_by=divide_by, min_raw_std=min_raw_std)
  np.testing.assert_allclose(judgement.advantages, advantages, atol=1e-6)
  np.testing.assert_array_equal(judgement.keep, keep)
  np.testing.assert_array_equal(judgement.valid, [[True, True, True], [True, True, False]])


def test_groups_are_filtered_on_raw_whatever_the_shaped_total():
  def uneven(answers, slates):
    return Rewards(jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3)).at[0, 0].set(0))

  judgement = make_judge(uneven, **SETTINGS)(*INPUTS, None)
  assert judgement.keep.tolist() == [True, False]
  assert judgement.advantages[0].any() and not judgement.advantages[1].any()
  kept = make_judge(uneven, **SETTINGS | {"keep_all": True})(*INPUTS, None)
  assert kept.keep.all() and kept.advantages[1].any()


def test_monitors_show_the_function_and_what_any_answer_shows():
  by_function, by_config = (mean(make_judge(reward, **SETTINGS)(*INPUTS, None)) for reward in (first_label, RewardConfig()))
  np.testing.assert_allclose(by_function["rank_reward"], FIRST_LABEL.mean(), atol=1e-6)
  np.testing.assert_allclose(by_function["reward"], (np.where(FIRST_LABEL > 0, 10, FIRST_LABEL) + PENALTY).mean(), atol=1e-6)
  assert by_function.keys() == by_config.keys() and by_function["error/missing"] > 0
  for name in by_function.keys() - {"reward", "rank_reward"}:
    assert by_function[name] == by_config[name], name


def test_a_device_reward_sees_arrays_alone_and_what_they_mean():
  seen = []

  def look(answers, slates):
    assert answers.texts is None and slates.records is None and slates.catalogue is None
    jax.debug.callback(lambda *arrays: seen.append(arrays), *answers[:3], *slates[:3])
    return first_label(answers, slates)

  jax.block_until_ready(make_judge(look, **SETTINGS)(*INPUTS, None))
  jax.effects_barrier()
  expected = (ANSWERS.rankings, np.array(ANSWERS.codes) == 0, LENGTHS, LABELS, SHOWN, np.array(LABELS) >= 0)
  for got, wanted in zip(seen[0], expected, strict=True):
    np.testing.assert_array_equal(got, wanted)


def host_twin(answers, slates):
  assert all(isinstance(x, np.ndarray) for x in (*answers[:3], *slates[:3]))
  assert answers.texts is TEXTS and slates.records is RECORDS and slates.catalogue is CATALOGUE
  return Rewards(*(np.asarray(x).tolist() for x in first_label(answers, slates)))


@pytest.mark.parametrize("over_a_mesh", [False, True])
def test_a_host_reward_gives_what_its_twin_on_the_device_gives(over_a_mesh):
  host, context = HOST, None
  if over_a_mesh:
    mesh = jax.make_mesh((2, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:2])
    host, context = HOST._replace(mesh=mesh), mesh
  device = make_judge(first_label, **SETTINGS)(*INPUTS, None)
  judge = make_judge(on_host(host_twin), **SETTINGS)
  if context is None:
    judgement = judge(*INPUTS, host)
  else:
    with jax.set_mesh(context):
      judgement = judge(*INPUTS, host)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), judgement, device)


def test_a_host_reward_without_the_host_is_refused():
  with pytest.raises(ValueError, match=r"host: .*host_twin"):
    make_judge(on_host(host_twin), **SETTINGS)(*INPUTS, None)


def not_finite(answers, slates):
  return Rewards(np.array([[0, 0, 0], [0, np.nan, 0]]), np.zeros((2, 3)))


def infinite_raw(answers, slates):
  return Rewards(np.zeros((2, 3)), np.array([[0, 0, 0], [0, np.inf, 0]]))


def one_a_slate(answers, slates):
  return Rewards(np.zeros((2, 3)), np.zeros(2))


def total_alone(answers, slates):
  return np.zeros((2, 3))


@pytest.mark.parametrize("mark", [lambda fn: fn, on_host])
@pytest.mark.parametrize(
  ("fn", "reason"),
  [(not_finite, "answer 1 of slate 1"), (infinite_raw, "answer 1 of slate 1"), (one_a_slate, "raw"), (total_alone, "total, raw")],
)
def test_rewards_that_cannot_be_used_name_the_function(mark, fn, reason):
  with pytest.raises(ConfigError, match=rf"reward\.fn: \S*test_judge:{fn.__name__} .*{reason}"):
    make_judge(mark(fn), **SETTINGS)(*INPUTS, HOST)


def test_ragged_lists_are_refused_by_name():
  with pytest.raises(ConfigError, match=r"reward\.fn: .*total"):
    make_judge(on_host(lambda answers, slates: Rewards([[0, 0, 0], [0]], [[0] * 3] * 2)), **SETTINGS)(*INPUTS, HOST)
