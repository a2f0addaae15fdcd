import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, policy_loss, truncated_importance_weights
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.rollout.generate import Rollout, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.rl import (
  Judgement,
  NoSignalError,
  RlBatch,
  RlConfig,
  SilenceCounter,
  collect_groups,
  completion_log_probs,
  make_rl_update,
)
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
  return RlBatch(
    prompts=random.integers(0, VOCAB, (num_prompts, prompt_length)).astype(np.int32),
    prompt_mask=np.arange(prompt_length) < random.integers(1, prompt_length + 1, (num_prompts, 1)),
    completions=random.integers(0, VOCAB, shape).astype(np.int32),
    completion_mask=np.arange(completion_length) < lengths,
    behaviour_logps=(-3 + 0.3 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=(num_prompts, group)).astype(np.float32),
    keep=np.arange(num_prompts) != 1,
  )


def _unshared_log_probs(params, batch):
  """The same by P * G plain rows, each its prompt followed by its completion."""
  num_prompts, group, length = batch.completions.shape
  width = batch.prompts.shape[1] + length
  tokens = np.zeros((num_prompts * group, width), np.int32)
  places = np.zeros((num_prompts * group, length), np.int32)
  sizes = np.zeros((num_prompts * group, 1), np.int32)
  for row in range(num_prompts * group):
    p, g = divmod(row, group)
    prompt = batch.prompts[p][batch.prompt_mask[p]]
    completion = batch.completions[p, g][batch.completion_mask[p, g]]
    tokens[row, : len(prompt) + len(completion)] = [*prompt, *completion]
    places[row] = len(prompt) - 1 + np.arange(length)
    sizes[row] = len(prompt) + len(completion)
  positions = np.broadcast_to(np.arange(width), tokens.shape)
  hidden, _ = DECODER.apply({"params": params}, tokens, positions, (positions < sizes).astype(np.int32))
  log_probs = jax.nn.log_softmax(DECODER.apply({"params": params}, hidden, method="logits"))
  log_probs = jnp.take_along_axis(log_probs, places[..., None], axis=1)
  chosen = jnp.take_along_axis(log_probs, batch.completions.reshape(-1, length, 1), axis=-1)
  return chosen.reshape(batch.completions.shape)


def _loss(log_probs, batch):
  weights = batch.completion_mask * batch.keep[:, None, None]
  loss = policy_loss(log_probs, batch.behaviour_logps, batch.advantages, weights, DAPO)
  return loss.loss_sum / loss.denominator


@pytest.mark.parametrize(
  "shape",
  [
    {},
    {"num_prompts": 2, "group": 3, "prompt_length": 3, "completion_length": 7},
    pytest.param({"num_prompts": 4, "group": 1, "prompt_length": 5}, marks=pytest.mark.slow),
    {"num_prompts": 2, "completion_length": 1},
  ],
)
def test_shared_prefix_equals_full_sequences_in_loss_and_gradient(params, shape):
  batch = _batch(len(shape), **shape)
  shared = jax.jit(jax.value_and_grad(lambda params: _loss(completion_log_probs(DECODER, params, batch)[0], batch)))
  unshared = jax.jit(jax.value_and_grad(lambda params: _loss(_unshared_log_probs(params, batch), batch)))
  (loss, gradient), (expected_loss, expected_gradient) = shared(params), unshared(params)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  norm = optax.global_norm(expected_gradient)
  difference = optax.global_norm(jax.tree.map(jnp.subtract, gradient, expected_gradient))
  assert norm > 0 and difference <= 1e-5 * norm


def test_trainer_log_probs_equal_the_behaviour_log_probs(params):
  batch = _batch(0, num_prompts=6, prompt_length=20)
  run = make_generate(DECODER, group=4, max_new_tokens=12, eos_id=EOS, pad_id=PAD)
  again = jax.jit(lambda params, rollout, temperature: completion_log_probs(DECODER, params, rollout, temperature))
  for temperature in (1.0, 1.7):
    rollout = run(params, batch.prompts, batch.prompt_mask, jax.random.key(0), Sampling.create(temperature))
    assert len(np.unique(rollout.completion_mask.sum(axis=-1))) > 3, "completions of many lengths"
    log_probs, entropy = again(params, rollout, temperature)
    np.testing.assert_allclose(jnp.where(rollout.completion_mask, log_probs - rollout.behaviour_logps, 0), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.where(rollout.completion_mask, entropy - rollout.entropy, 0), 0, atol=1e-4)


def _one_step(config, params, batch):
  optimizer = optax.adamw(1e-2)
  return jax.jit(make_rl_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)


@pytest.mark.slow
def test_microbatches_and_unkept_groups_change_nothing(params):
  batch = _batch(1, num_prompts=4)
  # SGD's step is the gradient itself.
  optimizer = optax.sgd(1.0)

  def step(config, batch):
    return jax.jit(make_rl_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)

  state, metrics = step(RlConfig(), batch)
  kept = jax.tree.map(lambda x: x[np.array([0, 2, 3])], batch)
  for other, other_metrics in (step(RlConfig(microbatches=2), batch), step(RlConfig(), kept)):
    for name, metric in metrics.items():
      np.testing.assert_allclose(other_metrics[name].sum, metric.sum, rtol=1e-4, atol=1e-5, err_msg=name)
      assert other_metrics[name].count == metric.count
    difference = optax.global_norm(jax.tree.map(jnp.subtract, other.params, state.params))
    assert difference <= 1e-5 * metrics["grad_norm"].sum


def _naive_steps(params, batch, config):
  """Plain SGD with rate 1 over strided minibatches; the old policy is the trainer's before the first, or the sampler's."""
  weighed, loss = config.loss.importance_cap > 0, config.loss

  def log_probs_of(params, batch):
    return completion_log_probs(DECODER, params, batch)[0]

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
    RlConfig(PolicyLossConfig(aggregation="constant_length", importance_cap=1.5), minibatches=2, microbatches=2),
    pytest.param(RlConfig(PolicyLossConfig(aggregation="sequence_mean", importance_cap=1.5), microbatches=2), marks=pytest.mark.slow),
    pytest.param(RlConfig(PolicyLossConfig(aggregation="sequence_mean", ratio="sequence"), minibatches=2), marks=pytest.mark.slow),
  ],
)
def test_minibatches_and_importance_weights_equal_a_plain_loop(params, config):
  batch, optimizer = _batch(5, num_prompts=4), optax.sgd(1.0)
  state, metrics = jax.jit(make_rl_update(DECODER, optimizer, config))(init_state(params, optimizer), batch)
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
  update = jax.jit(make_rl_update(DECODER, optimizer, RlConfig(minibatches=2)))
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
  with pytest.raises(ValueError, match="3 prompts do not divide into 2 parts"):
    _one_step(RlConfig(microbatches=2), params, _batch(1))
  optimizer, mesh = optax.sgd(1.0), make_mesh(4, 2, 1)
  state, shardings = start_fresh(DECODER, optimizer, jax.random.key(7), mesh)
  with pytest.raises(ValueError, match="3 rows do not divide over the 8 parts of the mesh"):
    jit_update(make_rl_update(DECODER, optimizer, RlConfig()), mesh, shardings)(state, _batch(1))


def test_a_batch_without_kept_groups_leaves_the_parameters(params):
  batch = _batch(2).replace(keep=np.zeros(3, bool))
  state, metrics = _one_step(RlConfig(), params, batch)
  assert all(metrics[name].count == 0 and metrics[name].sum == 0 for name in ("loss", "grad_norm", "ratio"))
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state)), "Adam has not counted a step"


def test_an_update_on_a_mesh_equals_one_device():
  # Two gradient steps, importance weights, and groups of three, which no mesh divides.
  optimizer, batch = optax.sgd(1.0), _batch(3, num_prompts=16, group=3)
  config = RlConfig(PolicyLossConfig(importance_cap=2.0), minibatches=2)
  results = []
  for mesh in (make_mesh(1, 1, 1, devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
    state, shardings = start_fresh(DECODER, optimizer, jax.random.key(7), mesh)
    update = jit_update(make_rl_update(DECODER, optimizer, config), mesh, shardings)
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
  update = jit_update(make_rl_update(DECODER, optimizer, RlConfig()), mesh, replicated(mesh))
  batches, counts = [_batch(seed) for seed in range(3)], []
  for batch in batches:
    before = len(compilations)
    state, metrics = update(state, batch)
    jax.block_until_ready(metrics)
    counts.append(len(compilations) - before)
  assert counts[0] > 0 and counts[1:] == [0, 0] and state.step == 3


def test_policy_learns_to_emit_one_token():
  # A bandit: the reward is 1 where the first token is the one that the prompt names. Chance is 1/24.
  target = {2: 9, 3: 14}
  prompts = np.array([[2, 5], [3, 5]] * 4, np.int32)
  wanted = np.array([target[token] for token in prompts[:, 0]])
  optimizer = optax.adam(1e-2)
  state = init_state(init_params(DECODER, jax.random.key(0)), optimizer)
  run = make_generate(DECODER, group=16, max_new_tokens=2, eos_id=EOS, pad_id=PAD)
  update = jax.jit(make_rl_update(DECODER, optimizer, RlConfig()), donate_argnums=0)
  rate = []
  for step in range(40):
    key = jax.random.fold_in(jax.random.key(1), step)

    rollout = run(state.params, prompts, np.ones_like(prompts), key, Sampling.create())
    hit = (np.asarray(rollout.completions)[..., 0] == wanted[:, None]).astype(np.float32)
    played = rollout, _judge(hit)
    batch, metrics = collect_groups(lambda played=played: played, num_prompts=8, max_rounds=1)
    rate.append(float(metrics["reward"].mean()))
    state, update_metrics = update(state, batch)
    if update_metrics["loss"].count > 0:
      # The first step on a batch is on-policy: sampler and trainer agree.
      assert update_metrics["logp_gap"].mean() < 1e-4
  assert np.mean(rate[:3]) < 0.2 and np.mean(rate[-3:]) > 0.9


def _judge(rewards, raw=None, **choices):
  """A judge of given rewards `[P, G]`, negative where the answer is invalid."""
  rewards = np.array(rewards, np.float32)
  raw = rewards if raw is None else np.array(raw, np.float32)
  return Judgement(rewards, rewards >= 0, *group_advantages(rewards, raw, **choices))


def _rollout(number=0, group=2, finished=True):
  """Two groups; the prompt token is the group's running number."""
  zeros = np.zeros((2, group, 3), np.float32)
  return Rollout(
    prompts=np.full((2, 4), 2 * number) + np.arange(2)[:, None],
    prompt_mask=np.ones((2, 4), bool),
    completions=zeros.astype(np.int32),
    completion_mask=zeros == 0,
    behaviour_logps=zeros,
    entropy=zeros,
    finished=np.broadcast_to(finished, (2, group)),
    row_steps=np.full(2, 4.0 * group, np.float32),
  )


def _scripted(rewards_by_round, *, finished=True, **choices):
  """Rounds of 2 prompts x 2 answers whose rewards are given."""
  rounds = iter(enumerate(rewards_by_round))

  def play_round():
    number, rewards = next(rounds)
    return _rollout(number, finished=finished), _judge(rewards, **choices)

  return play_round


def test_groups_are_refilled_until_the_batch_is_full():
  # Kept: groups 1, 2, 4, 5; group 0 is all equal, group 3 all invalid. Three are wanted, so 5 is surplus, and round 4 is never asked for.
  rounds = [[[1, 1], [0, 1]], [[1, 0], [-1, -1]], [[0, 1], [1, 0]], [[0, 1], [0, 1]]]
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=3, max_rounds=4)
  assert batch.prompts[:, 0].tolist() == [1, 2, 4] and batch.keep.all()
  np.testing.assert_allclose(batch.advantages, [[-1, 1], [1, -1], [-1, 1]], rtol=1e-5)
  assert metrics["rounds"].sum == 3 and metrics["surplus_fraction"].sum == 1
  assert metrics["kept_fraction"].mean() == pytest.approx(4 / 6)
  assert metrics["all_equal_fraction"].mean() == pytest.approx(1 / 6)
  assert metrics["all_invalid_fraction"].mean() == pytest.approx(1 / 6)
  assert metrics["filled_fraction"].mean() == 1


def test_a_batch_that_is_full_enough_begins_no_further_round():
  rounds = [[[1, 1], [0, 1]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]]  # 3 of 4 places are filled after two rounds
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=4, max_rounds=3, min_filled=0.75)
  assert metrics["rounds"].sum == 2 and metrics["filled_fraction"].mean() == 0.75
  assert batch.keep.tolist() == [True, True, True, False]
  assert collect_groups(_scripted(rounds), num_prompts=4, max_rounds=3, min_filled=0.8)[1]["rounds"].sum == 3


def test_rounds_are_bounded_and_leftover_places_have_weight_zero():
  batch, metrics = collect_groups(_scripted([[[1, 1], [0, 1]]] * 5), num_prompts=4, max_rounds=2)
  assert batch.prompts[:, 0].tolist() == [1, 3, 0, 2]
  assert batch.keep.tolist() == [True, True, False, False]
  assert metrics["filled_fraction"].mean() == 0.5 and metrics["rounds"].sum == 2


def test_too_few_groups_for_the_batch_never_count_one_twice():
  batch, _ = collect_groups(_scripted([[[0, 1], [1, 0]]]), num_prompts=5, max_rounds=1)
  assert batch.keep.tolist() == [True, True, False, False, False]
  assert batch.prompts.shape == (5, 4)


def test_all_processes_go_on_until_the_last_one_is_full():
  # This process has its share after the first round, the other one only after the third.
  others, seen = iter([0, 1, 2]), []

  def gather(kept):
    seen.append(int(kept))
    return np.array([kept, next(others)])

  rounds = [[[0, 1], [1, 0]], [[1, 1], [0, 1]], [[0, 1], [1, 1]], [[0, 1], [0, 1]]]
  batch, metrics = collect_groups(_scripted(rounds), num_prompts=2, max_rounds=4, gather=gather)
  assert seen == [2, 3, 4]
  assert batch.prompts[:, 0].tolist() == [0, 1] and batch.keep.all()
  assert metrics["rounds"].sum == 3 and metrics["surplus_fraction"].sum == 2


def test_without_dynamic_sampling_every_group_counts_once():
  # Group 0 is all equal in what is optimised, group 1 in the raw reward only: as no group is judged, its shaping is learnt.
  script = _scripted([[[1, 1], [0, 1]]] * 3, raw=[[1, 0], [0, 0]], min_raw_std=0.0)
  batch, metrics = collect_groups(script, num_prompts=2, max_rounds=3)
  assert batch.keep.all() and metrics["rounds"].sum == 1 and metrics["kept_fraction"].mean() == 1
  np.testing.assert_allclose(batch.advantages, [[0, 0], [-1, 1]], rtol=1e-5)
  assert metrics["all_equal_fraction"].mean() == 0.5


def test_advantages_without_the_standard_deviation():
  batch, _ = collect_groups(_scripted([[[0, 1], [1, 0]]], divide_by_std=False), num_prompts=2, max_rounds=1)
  np.testing.assert_allclose(batch.advantages, [[-0.5, 0.5], [0.5, -0.5]], rtol=1e-6)


def test_truncated_completions_are_masked_when_told_to():
  finished = np.array([[True, False], [False, False]])
  for mask_truncated, expected in ((False, np.ones((2, 2))), (True, finished)):
    script = _scripted([[[0, 1], [1, 0]]], finished=finished)
    batch, metrics = collect_groups(script, num_prompts=2, max_rounds=1, mask_truncated=mask_truncated)
    np.testing.assert_array_equal(batch.completion_mask, np.repeat(expected[..., None], 3, axis=-1))
    # Counted, and at their length, in both cases; their rewards stay in the group's mean.
    assert metrics["truncated_rate"].mean() == 0.75 and metrics["completion_length"].mean() == 3
    np.testing.assert_allclose(batch.advantages, [[-1, 1], [1, -1]], rtol=1e-5)


def test_completions_that_never_end_change_nothing_when_they_are_masked(params):
  batch = _batch(4)
  batch.completion_mask[:] = False
  state, metrics = _one_step(RlConfig(PolicyLossConfig(aggregation="sequence_mean")), params, batch)
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert metrics["loss"].count == 0 and metrics["skipped"].sum == 0
  assert all(np.isfinite(metric.sum) for metric in metrics.values())


@pytest.mark.parametrize(
  ("labels", "rank", "group"),
  [
    ([0, 0, 0], "promotion", 2),
    ([0, 0, 0], "auc", 2),
    ([0, 0, 0], "ndcg", 2),
    # Under the promotion v1's target is the first of equal positives, whose place still matters.
    ([1, 1, 1], "auc", 2),
    ([2, 2, 2], "ndcg", 2),
    ([0, 1, 0], "auc", 1),
  ],
)
@pytest.mark.parametrize("condition", ["naive", "v1", "relative"])
def test_slates_whose_order_cannot_matter_and_groups_of_one_are_counted_as_equal(labels, rank, group, condition):
  rankings = np.array([[[0, 1, 2], [2, 1, 0]]] * 2)[:, :group]
  rewards = compute_rewards(RewardConfig(rank, condition), rankings, np.array([labels] * 2), np.array([[0, 1, 2]] * 2))
  judgement = Judgement(rewards.total, rewards.format > 0, rewards.advantages, rewards.keep)
  batch, metrics = collect_groups(lambda: (_rollout(group=group), judgement), num_prompts=2, max_rounds=2)
  assert not batch.keep.any() and not batch.advantages.any()
  assert metrics["all_equal_fraction"].mean() == 1 and metrics["filled_fraction"].mean() == 0 and metrics["rounds"].sum == 2


def test_steps_without_a_signal_in_a_row_stop_with_the_reasons():
  def step(rewards, finished=True):
    return collect_groups(_scripted([rewards], finished=finished), num_prompts=2, max_rounds=1)[1]

  counter = SilenceCounter(2)
  nothing = step([[-1, -1], [1, 1]], finished=np.array([[False, False], [True, True]]))
  for metrics in (nothing, step([[0, 1], [1, 1]]), nothing):  # the second one has a signal, so that two never follow each other
    counter.add(metrics)
  with pytest.raises(NoSignalError, match=r"2 steps in a row.* of 4 groups 2 had no valid answer and 2 .*equal reward; 50% of the answers"):
    counter.add(nothing)


def test_a_batch_of_answers_that_never_end_is_counted():
  batch, metrics = collect_groups(
    _scripted([[[-1, -1], [-1, -1]]] * 2, finished=np.zeros((2, 2), bool)), num_prompts=2, max_rounds=2, mask_truncated=True
  )
  assert not batch.keep.any() and not batch.completion_mask.any() and not batch.advantages.any()
  assert metrics["truncated_rate"].mean() == 1 and metrics["all_invalid_fraction"].mean() == 1 and metrics["filled_fraction"].mean() == 0


def test_rounds_of_different_prompt_lengths_are_refused():
  rollout = _rollout()
  lengths = iter([4, 5])

  def play_round():
    length = next(lengths)
    return rollout.replace(prompts=np.zeros((2, length)), prompt_mask=np.ones((2, length))), _judge([[1, 1], [0, 0]])

  with pytest.raises(ValueError, match=r"round 2 has prompts \(2, 5\).*the first had \(2, 4\)"):
    collect_groups(play_round, num_prompts=2, max_rounds=2)


def test_a_reward_that_is_not_finite_stops_with_its_place():
  with pytest.raises(ValueError, match=r"rewards\[1, 0\] is nan"):
    collect_groups(_scripted([[[0, 1], [np.nan, 1]]]), num_prompts=2, max_rounds=1)


@pytest.mark.parametrize(
  "bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"microbatches": 0}, {"minibatches": 0}]
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match="must"):
    RlConfig(**bad)
