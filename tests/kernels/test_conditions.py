"""A condition is one record of a table: what is added there is known to every path and to the config."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.kernels.rank_reward import pallas, reference
from gr2_jax.kernels.rank_reward.conditions import CONDITIONS, Condition, Earned, Paid, find_condition
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards


def _halved(e: Earned) -> Paid:
  half = jnp.where(e.copied, 0.0, e.earned / 2)
  return Paid(e.earned, half, e.improved)


@pytest.fixture
def halved(monkeypatch):
  """A condition of this test alone: half of R, nothing for a copy, and alpha where upstream is beaten."""
  record = Condition("halved_in_a_test", 0.5, -2.0, _halved, "half of R")
  monkeypatch.setitem(CONDITIONS, record.name, record)
  return record.name


# One target at index 1 of 5. A copy earns Eq 5's 0.75, raw, and nothing of it; the target in front 1 / 2 + 0.5; one down 0.5 / 2.
GROUP = jnp.asarray([[[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 2, 1, 3, 4], [-1] * 5]])
LABELS, ORDER = jnp.asarray([[0, 1, 0, 0, 0]]), jnp.arange(5)[None]
RAW, REWARD = [0.75, 1.0, 0.5, -2.0], [0.0, 1.0, 0.25, -2.0]


def test_the_config_takes_a_new_record_and_its_defaults(halved):
  rewards = compute_rewards(RewardConfig(condition=halved), GROUP, LABELS, ORDER)
  np.testing.assert_allclose(rewards.rank_raw[0], RAW, atol=1e-6)
  np.testing.assert_allclose(rewards.total[0], REWARD, atol=1e-6)


@pytest.mark.parametrize("kernel", [None, pallas.group_rank_terms_tpu, pallas.group_rank_terms_triton])
def test_every_path_computes_a_new_record(halved, kernel):
  path = reference.group_rank_terms if kernel is None else functools.partial(kernel, interpret=True)
  static = {
    "std_floor": reference.STD_FLOOR,
    "min_raw_std": 0.0,
    "divide_by": "none",
    "options": RewardConfig(condition=halved).to_options(),
  }
  terms, advantages, _ = jax.jit(functools.partial(path, **static))(GROUP, LABELS, ORDER, ORDER, jnp.ones((1, 5), bool), jnp.zeros((1, 4)))
  np.testing.assert_allclose(terms.rank_reward[0], RAW, atol=1e-6)
  np.testing.assert_allclose(terms.reward[0], REWARD, atol=1e-6)
  np.testing.assert_allclose(advantages[0], np.array(REWARD) - np.mean(REWARD), atol=1e-6)


def test_records_carry_their_names_and_their_documentation():
  assert all(name == record.name and record.doc for name, record in CONDITIONS.items())


def test_a_name_without_a_record_is_refused_with_the_names_that_have_one():
  with pytest.raises(ValueError, match=r"condition: 'eq8' .*relative"):
    find_condition("eq8")
  with pytest.raises(ValueError, match="condition"):
    RewardConfig(condition="eq8")
