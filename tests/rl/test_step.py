"""A whole step, from slates to new parameters, with a decoder, a list of slates and no run directory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.policy import DAPO
from gr2_jax.rewards.own import Rewards, on_host
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rl.draw import SlateStream
from gr2_jax.rl.options import CollectOptions, RolloutOptions
from gr2_jax.rl.step import make_collector, make_roll_out, rl_step
from gr2_jax.rl.stop import NoSignalError, SilenceCounter
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.start import start_fresh
from gr2_jax.training.mesh import jit_update, make_mesh

OPTIMIZER = optax.sgd(0.1)
ROLLOUT = RolloutOptions(prompts=4, group=4, max_new_tokens=16)


@pytest.fixture(scope="module")
def decoder(context):
  return Decoder(preset("test", context.vocabulary.size))


@pytest.fixture(scope="module")
def constraint(context, style):
  return SlateConstraint(context.vocabulary, style)


@pytest.fixture(scope="module")
def begin(slates, context, style, decoder, constraint):
  """`begin(mesh, **collector) -> (state, collector, compiled update)`; what is compiled is shared by all tests of a mesh."""
  roll_out = make_roll_out(decoder, context.vocabulary, ROLLOUT, constraint)
  one_device = make_mesh(devices=jax.devices()[:1])

  @functools.cache
  def compile_update(mesh):
    _, shardings = start_fresh(decoder, OPTIMIZER, jax.random.key(0), mesh)
    return jit_update(make_policy_update(decoder, OPTIMIZER, UpdateConfig(), constraint), mesh, shardings)

  def make(mesh=one_device, *, options=None, reward=None):
    options = CollectOptions(ROLLOUT, max_rounds=2) if options is None else options
    stream = SlateStream(slates, context, style, prompts=ROLLOUT.prompts, presentation="shuffled", seed=3)
    reward = RewardConfig(condition="naive") if reward is None else reward
    key = jax.random.key(11)
    collector = make_collector(decoder, stream, options, reward=reward, loss=DAPO, constraint=constraint, mesh=mesh, key=key)
    state, _ = start_fresh(decoder, OPTIMIZER, jax.random.key(0), mesh)
    return state, dataclasses.replace(collector, roll_out=roll_out), compile_update(mesh)

  return make


def distance(one, two):
  return float(optax.global_norm(jax.tree.map(np.subtract, jax.device_get(one), jax.device_get(two))))


def test_a_step_learns_from_answers_to_slates_and_a_resumed_one_equals_it(begin, slates):
  state, collector, update = begin()
  before, place = jax.device_get(state.params), collector.stream.get_state()
  result = rl_step(state, collector, update)
  assert result.state.step == 1 and distance(result.state.params, before) > 0
  assert result.batch.completions.shape == (4, 4, 16) and result.batch.keep.any()
  np.testing.assert_allclose(result.batch.advantages.sum(axis=-1), 0, atol=1e-4)
  assert set(np.asarray(result.batch.weights)) <= {slate.weight for slate in slates} and len(set(result.batch.weights)) > 1
  drawn, metrics = result.drawn, result.metrics
  assert drawn["valid_rate"].mean() == 1, "the constraint leaves permutations alone"
  assert {"reward", "kept_fraction", "near_identity_rate", "top1_share/slot_0", "error/overlong", "occupancy"} <= drawn.keys()
  assert metrics["logp_gap"].mean() < 1e-3 and metrics["skipped"].sum == 0 and metrics["grad_norm"].mean() > 0
  again, collector, update = begin()
  next(collector.stream)
  collector.stream.set_state(place)
  jax.tree.map(np.testing.assert_array_equal, rl_step(again, collector, update).state, result.state)


@pytest.mark.slow
def test_a_mesh_takes_the_same_step(begin):
  results = [rl_step(*begin(*mesh)) for mesh in ((), (make_mesh(2, 2, 2),))]
  one, two = (jax.device_get((result.state.params, result.batch.completions)) for result in results)
  np.testing.assert_array_equal(one[1], two[1])
  assert distance(one[0], two[0]) < 1e-5


def test_a_reward_on_the_host_sees_what_the_device_ranks(begin, slates):
  """The same reward twice: whether the answer begins with the last candidate; compiled, and in Python from the records."""

  def last_first(answers, slates):
    hit = (answers.rankings[..., 0] == slates.mask.sum(axis=-1)[:, None] - 1) * 1.0
    return Rewards(hit, hit)

  @on_host
  def last_first_on_host(answers, slates):
    assert all(text.endswith("</answer>") for texts in answers.texts for text in texts)
    hits = [
      [float(record.candidates[ranking[0]] == record.candidates[-1]) for ranking in group]
      for record, group in zip(slates.records, np.asarray(answers.rankings), strict=True)
    ]
    return Rewards(hits, hits)

  compiled, on_the_host = (rl_step(*begin(reward=reward)) for reward in (last_first, last_first_on_host))
  assert 0 < compiled.drawn["rank_reward"].mean() < 1
  for name in ("advantages", "completions", "keep"):
    np.testing.assert_allclose(getattr(compiled.batch, name), getattr(on_the_host.batch, name), atol=1e-6)
  assert distance(compiled.state.params, on_the_host.state.params) < 1e-6


def test_rewards_that_never_differ_stop_the_run_and_change_nothing(begin):
  def same(answers, slates):
    return Rewards(jnp.ones(answers.valid.shape), jnp.ones(answers.valid.shape))

  state, collector, update = begin(reward=same)
  before = jax.device_get(state.params)
  silence = SilenceCounter(2)
  result = rl_step(state, collector, update, silence)
  assert result.drawn["rounds"].sum == 2 and not result.batch.keep.any() and distance(result.state.params, before) == 0
  with pytest.raises(NoSignalError, match="equal reward"):
    rl_step(result.state, collector, update, silence)


def test_without_dynamic_sampling_one_round_is_played_and_all_groups_count(begin):
  options = CollectOptions(ROLLOUT, dynamic_sampling=False, max_rounds=3)
  result = rl_step(*begin(options=options))
  assert result.drawn["rounds"].sum == 1 and result.batch.keep.all() and result.drawn["kept_fraction"].mean() == 1
