"""The policy update: gradient steps of the clipped loss, whatever the cuts, the rows, the devices and the weights of slates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, policy_loss, truncated_importance_weights
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.start import start_fresh
from gr2_jax.training.mesh import jit_update, make_mesh, replicated
from gr2_jax.training.state import init_state

VOCAB, EOS, PAD = 24, 1, 0
DECODER = Decoder(preset("test", VOCAB))


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))


def _batch(seed, num_prompts=3, group=2, prompt_length=6, completion_length=4):
  """Random groups of random lengths; what stands under the masks is random too, and must not matter."""
  random = np.random.default_rng(seed)
  shape = (num_prompts, group, completion_length)
  lengths = random.integers(1, completion_length + 1, (num_prompts, group, 1))
  return GroupBatch(
    prompts=random.integers(0, VOCAB, (num_prompts, prompt_length)).astype(np.int32),
    prompt_mask=np.arange(prompt_length) < random.integers(1, prompt_length + 1, (num_prompts, 1)),
    completions=random.integers(0, VOCAB, shape).astype(np.int32),
    completion_mask=np.arange(completion_length) < lengths,
    behaviour_logps=(-3 + 0.3 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=(num_prompts, group)).astype(np.float32),
    weights=np.ones(num_prompts, np.float32),
    keep=np.arange(num_prompts) != 1,
  )


def _one_step(config, params, batch):
  optimizer = optax.adamw(1e-2)
  return jax.jit(make_policy_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)


@pytest.mark.slow
def test_microbatches_and_unkept_groups_change_nothing(params):
  batch = _batch(1, num_prompts=4)
  # SGD's step is the gradient itself.
  optimizer = optax.sgd(1.0)

  def step(config, batch):
    return jax.jit(make_policy_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)

  state, metrics = step(UpdateConfig(), batch)
  kept = jax.tree.map(lambda x: x[np.array([0, 2, 3])], batch)
  for other, other_metrics in (step(UpdateConfig(microbatches=2), batch), step(UpdateConfig(), kept)):
    for name, metric in metrics.items():
      np.testing.assert_allclose(other_metrics[name].sum, metric.sum, rtol=1e-4, atol=1e-5, err_msg=name)
      assert other_metrics[name].count == metric.count
    difference = optax.global_norm(jax.tree.map(jnp.subtract, other.params, state.params))
    assert difference <= 1e-5 * metrics["grad_norm"].sum


def _naive_steps(params, batch, config):
  """Plain SGD with rate 1 over strided minibatches; the old policy is the trainer's before the first, or the sampler's."""
  weighed, loss = config.loss.importance_cap is not None, config.loss

  def log_probs_of(params, batch):
    return completion_log_probs(DECODER, params, *batch.texts)[0]

  @jax.jit
  def gradient(params, part, trainer, old):
    mask = part.completion_mask * part.keep[:, None, None]

    def value(params):
      weights = truncated_importance_weights(trainer, part.behaviour_logps, mask, loss.importance_cap) if weighed else 1.0
      result = policy_loss(log_probs_of(params, part), old, part.advantages, mask, loss, importance_weights=weights)
      return result.loss_sum / result.denominator

    return jax.grad(value)(params)

  trainer = jax.jit(log_probs_of)(params, batch)
  old = trainer if weighed or config.minibatches > 1 else batch.behaviour_logps
  for start in range(config.minibatches):
    part, part_trainer, part_old = jax.tree.map(lambda x, start=start: x[start :: config.minibatches], (batch, trainer, old))
    params = jax.tree.map(jnp.subtract, params, gradient(params, part, part_trainer, part_old))
  return params


@pytest.mark.parametrize(
  "config",
  [
    UpdateConfig(PolicyLossConfig(aggregation="constant_length", importance_cap=1.5), minibatches=2, microbatches=2),
    pytest.param(UpdateConfig(PolicyLossConfig(aggregation="sequence_mean", importance_cap=1.5), microbatches=2), marks=pytest.mark.slow),
    pytest.param(UpdateConfig(PolicyLossConfig(aggregation="sequence_mean", ratio="sequence"), minibatches=2), marks=pytest.mark.slow),
  ],
)
def test_minibatches_and_importance_weights_equal_a_plain_loop(params, config):
  batch, optimizer = _batch(5, num_prompts=4), optax.sgd(1.0)
  state, metrics = jax.jit(make_policy_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)
  expected = _naive_steps(params, batch, config)
  moved = optax.global_norm(jax.tree.map(jnp.subtract, expected, params))
  assert optax.global_norm(jax.tree.map(jnp.subtract, state.params, expected)) <= 1e-4 * moved
  assert state.step == 1 and metrics["grad_norm"].count == config.minibatches
  # Random behaviour log-probabilities are far from the model's: the gap shows whatever the ratio is taken to.
  assert metrics["logp_gap"].mean() > 0.1
  if config.loss.importance_cap:
    assert 0 < metrics["importance_capped_fraction"].mean() < 1 and metrics["importance_weight"].mean() < 1.5
  if config.minibatches == 1:
    np.testing.assert_allclose(metrics["ratio"].mean(), 1.0)


def test_a_minibatch_that_is_not_finite_is_skipped_alone(params):
  # Prompts 0 and 2 make the first minibatch, 1 and 3 the second.
  batch, optimizer = _batch(6, num_prompts=4), optax.adamw(1e-2)
  batch.keep[:] = True
  batch.advantages[3, 0] = np.nan
  update = jax.jit(make_policy_update(DECODER, optimizer, UpdateConfig(minibatches=2)))
  state, metrics = update(init_state(params, optimizer), batch)
  assert metrics["skipped"].sum == 1 and metrics["skipped"].count == 2 and metrics["grad_norm"].count == 1
  assert all(np.isfinite(metric.sum) for metric in metrics.values())
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)), "the first minibatch was learnt"
  assert state.opt_state[0].count == 1 and state.step == 1
  batch.advantages[0, 0] = np.nan
  state, metrics = update(init_state(params, optimizer), batch)
  assert metrics["skipped"].sum == 2
  jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_prompts_that_do_not_divide_are_refused(params):
  with pytest.raises(ValueError, match="3 prompts do not divide"):
    _one_step(UpdateConfig(microbatches=2), params, _batch(1))
  optimizer, mesh = optax.sgd(1.0), make_mesh(4, 2, 1)
  state, shardings = start_fresh(DECODER, optimizer, jax.random.key(7), mesh)
  with pytest.raises(ValueError, match="batch: 3 rows"):
    jit_update(make_policy_update(DECODER, optimizer, UpdateConfig()), mesh, shardings)(state, _batch(1))


def test_a_batch_without_kept_groups_leaves_the_parameters(params):
  batch = _batch(2).replace(keep=np.zeros(3, bool))
  state, metrics = _one_step(UpdateConfig(), params, batch)
  assert all(metrics[name].count == 0 and metrics[name].sum == 0 for name in ("loss", "grad_norm", "ratio"))
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state)), "Adam has not counted a step"


def test_an_update_on_a_mesh_equals_one_device():
  # Two gradient steps, importance weights, and groups of three, which no mesh divides.
  optimizer, batch = optax.sgd(1.0), _batch(3, num_prompts=16, group=3)
  config = UpdateConfig(PolicyLossConfig(importance_cap=2.0), minibatches=2)
  results = []
  for mesh in (make_mesh(1, 1, 1, devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
    state, shardings = start_fresh(DECODER, optimizer, jax.random.key(7), mesh)
    update = jit_update(make_policy_update(DECODER, optimizer, config), mesh, shardings)
    state, metrics = update(state, batch)
    results.append(jax.device_get((state.params, metrics)))
  (expected, expected_metrics), (actual, metrics) = results
  norm = expected_metrics["grad_norm"].sum
  np.testing.assert_allclose(metrics["loss"].mean(), expected_metrics["loss"].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"].sum, norm, rtol=1e-5)
  assert optax.global_norm(jax.tree.map(np.subtract, actual, expected)) <= 1e-5 * norm


def test_further_updates_on_the_same_shapes_compile_nothing(params, compilations):
  optimizer, mesh = optax.adam(1e-2), make_mesh(data=1, devices=jax.devices()[:1])
  state = jax.device_put(init_state(jax.tree.map(jnp.copy, params), optimizer), replicated(mesh))
  update = jit_update(make_policy_update(DECODER, optimizer, UpdateConfig()), mesh, replicated(mesh))
  batches, counts = [_batch(seed) for seed in range(3)], []
  for batch in batches:
    before = len(compilations)
    state, metrics = update(state, batch)
    jax.block_until_ready(metrics)
    counts.append(len(compilations) - before)
  assert counts[0] > 0 and counts[1:] == [0, 0] and state.step == 3


@pytest.mark.slow
def test_policy_learns_to_emit_one_token():
  # A bandit: the reward is 1 where the first token is the one that the prompt names. Chance is 1/24.
  target = {2: 9, 3: 14}
  prompts = np.array([[2, 5], [3, 5]] * 4, np.int32)
  wanted = np.array([target[token] for token in prompts[:, 0]])
  optimizer = optax.adam(1e-2)
  state = init_state(init_params(DECODER, jax.random.key(0)), optimizer)
  run = make_generate(RolloutConfig(DECODER, group=16, max_new_tokens=2, eos_id=EOS, pad_id=PAD))
  update = jax.jit(make_policy_update(DECODER, optimizer, UpdateConfig()), donate_argnums=0)
  rate = []
  for step in range(40):
    key = jax.random.fold_in(jax.random.key(1), step)
    rollout = run(state.params, prompts, np.ones_like(prompts), key, Sampling.create())
    hit = (np.asarray(rollout.completions)[..., 0] == wanted[:, None]).astype(np.float32)
    advantages, keep = group_advantages(hit, hit)
    batch = GroupBatch(
      prompts=rollout.prompts,
      prompt_mask=rollout.prompt_mask,
      completions=rollout.completions,
      completion_mask=rollout.completion_mask,
      behaviour_logps=rollout.behaviour_logps,
      advantages=advantages,
      weights=np.ones(8, np.float32),
      keep=keep,
    )
    rate.append(hit.mean())
    state, update_metrics = update(state, batch)
    if update_metrics["loss"].count > 0:
      # The first step on a batch is on-policy: sampler and trainer agree.
      assert update_metrics["logp_gap"].mean() < 1e-4
  assert np.mean(rate[:3]) < 0.2 and np.mean(rate[-3:]) > 0.9


def test_completions_that_never_end_change_nothing_when_they_are_masked(params):
  batch = _batch(4)
  batch.completion_mask[:] = False
  state, metrics = _one_step(UpdateConfig(PolicyLossConfig(aggregation="sequence_mean")), params, batch)
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert metrics["loss"].count == 0 and metrics["skipped"].sum == 0
  assert all(np.isfinite(metric.sum) for metric in metrics.values())


def _batch_of_many_lengths(seed, group=5, length=8):
  """Completions of which two fill a row, one without any token to learn from, and one with a hole in its mask."""
  batch, random = _batch(seed, num_prompts=4, group=group, completion_length=length), np.random.default_rng(seed)
  lengths = random.integers(1, length // 2, (4, group, 1))
  lengths[:, 0], lengths[0, 1] = length, 0
  mask = np.arange(length) < lengths
  mask[1, 0, 2] = False
  return batch.replace(completion_mask=mask, keep=np.arange(4) != 2)


@pytest.mark.parametrize(
  ("loss", "cuts"),
  [
    (DAPO, {"microbatches": 2}),
    pytest.param(PolicyLossConfig("sequence_mean", "sequence", importance_cap=1.5), {"minibatches": 2}, marks=pytest.mark.slow),
  ],
)
def test_packed_updates_equal_unpacked_ones(params, loss, cuts):
  optimizer = optax.sgd(1.0)
  plain, packed = (jax.jit(make_policy_update(DECODER, optimizer, UpdateConfig(loss, **cuts, packed_rows=rows))) for rows in (None, 3))
  roomy = _batch_of_many_lengths(0)
  # One group that does not fit sends its part of the batch down the unpacked path.
  full = roomy.replace(completion_mask=roomy.completion_mask | (np.arange(4) == 1)[:, None, None])
  for batch, fraction in ((roomy, 1.0), (full, 0.5)):
    state, metrics = packed(init_state(params, optimizer), batch)
    expected, expected_metrics = plain(init_state(params, optimizer), batch)
    assert metrics.pop("packed_fraction").mean() == fraction
    assert metrics.keys() == expected_metrics.keys()
    for name, metric in expected_metrics.items():
      np.testing.assert_allclose(metrics[name].sum, metric.sum, rtol=1e-4, atol=1e-5, err_msg=name)
      assert metrics[name].count == metric.count
    moved = optax.global_norm(jax.tree.map(jnp.subtract, expected.params, params))
    assert moved > 0 and optax.global_norm(jax.tree.map(jnp.subtract, state.params, expected.params)) <= 3e-5 * moved


@pytest.mark.parametrize(
  "config",
  [
    UpdateConfig(),
    pytest.param(UpdateConfig(PolicyLossConfig(aggregation="sequence_mean", importance_cap=1.5)), marks=pytest.mark.slow),
    pytest.param(UpdateConfig(PolicyLossConfig(aggregation="constant_length"), microbatches=2), marks=pytest.mark.slow),
  ],
)
def test_a_group_of_weight_two_is_the_group_given_twice(params, config):
  batch, optimizer = _batch(8, num_prompts=4), optax.sgd(1.0)
  update = jax.jit(make_policy_update(DECODER, optimizer, config))
  weighed, metrics = update(init_state(params, optimizer), batch.replace(weights=np.float32([2, 1, 1, 2])))
  twice = jax.tree.map(lambda x: x[np.array([0, 0, 1, 2, 3, 3])], batch)
  expected, expected_metrics = update(init_state(params, optimizer), twice)
  np.testing.assert_allclose(metrics["loss"].sum, expected_metrics["loss"].sum, rtol=1e-5)
  assert metrics["loss"].count == expected_metrics["loss"].count
  moved = optax.global_norm(jax.tree.map(jnp.subtract, expected.params, params))
  assert moved > 0 and optax.global_norm(jax.tree.map(jnp.subtract, weighed.params, expected.params)) <= 1e-5 * moved
  plain, _ = update(init_state(params, optimizer), batch)
  assert optax.global_norm(jax.tree.map(jnp.subtract, weighed.params, plain.params)) > 1e-2 * moved


def test_equal_weights_are_none(params):
  batch, optimizer = _batch(9), optax.sgd(1.0)
  update = jax.jit(make_policy_update(DECODER, optimizer, UpdateConfig()))
  states = [update(init_state(params, optimizer), batch.replace(weights=np.full(3, weight, np.float32)))[0] for weight in (1, 4)]
  jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6), *(state.params for state in states))


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *(("temperature", value) for value in (0.0, float("nan"), float("inf"))),
    ("microbatches", 0),
    ("minibatches", 0),
    ("packed_rows", 0),
    ("packed_rows", -1),
  ],
)
def test_settings_out_of_range_are_refused(name, value):
  with pytest.raises(ValueError, match=f"{name}.* must"):
    UpdateConfig(**{name: value})
