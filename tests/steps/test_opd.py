"""The distillation update against Eq 4 written down over full sequences, on a mesh, and on a problem that it must solve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.opd import OpdConfig, make_opd_update
from gr2_jax.steps.start import start_fresh
from gr2_jax.training.mesh import init_sharded, jit_update, make_mesh
from gr2_jax.training.state import init_state

VOCAB, EOS, PAD = 12, 1, 0
SHAPE = {"vocab_size": VOCAB, "num_kv_heads": 2, "head_dim": 8, "mlp_width": 32}
STUDENT = Decoder(ModelConfig(num_layers=1, width=16, num_heads=2, **SHAPE))
TEACHER = Decoder(ModelConfig(num_layers=2, width=24, num_heads=4, **SHAPE))  # deeper, wider, on the same vocabulary


@pytest.fixture(scope="module")
def params():
  """(student's, teacher's), far enough from uniform."""
  return tuple(jax.tree.map(lambda x: x * 4.0, init_params(of, jax.random.key(key))) for key, of in enumerate((STUDENT, TEACHER)))


def _batch(seed, num_prompts=3, group=2, prompt_length=4, completion_length=3):
  random = np.random.default_rng(seed)
  shape = (num_prompts, group, completion_length)
  return GroupBatch(
    prompts=random.integers(0, VOCAB, (num_prompts, prompt_length)).astype(np.int32),
    prompt_mask=np.arange(prompt_length) < random.integers(1, prompt_length + 1, (num_prompts, 1)),
    completions=random.integers(0, VOCAB, shape).astype(np.int32),
    completion_mask=np.arange(completion_length) < random.integers(1, completion_length + 1, (num_prompts, group, 1)),
    behaviour_logps=(-2.5 + 0.2 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=(num_prompts, group)).astype(np.float32),
    weights=np.ones(num_prompts, np.float32),
    keep=np.ones(num_prompts, bool),
  )


def _full_log_probs(decoder, params, batch):
  """Log-probabilities `[rows, Lc, V]` at the completions' places by plain rows, each a whole prompt and its completion."""
  group, length = batch.completions.shape[1:]
  tokens = np.concatenate([np.repeat(batch.prompts, group, axis=0), batch.completions.reshape(-1, length)], axis=1)
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = decoder.apply({"params": params}, tokens, positions, np.ones_like(tokens))
  return jax.nn.log_softmax(decoder.apply({"params": params}, hidden, method="logits"))[:, -length - 1 : -1]


def _eq4(params, teacher_params, batch, beta, form):
  """The loss as the paper has it, for a weight of 1 on the reward."""
  log_p = _full_log_probs(STUDENT, params, batch)
  log_q = jax.lax.stop_gradient(_full_log_probs(TEACHER, teacher_params, batch))
  flat = lambda x: x.reshape(-1, x.shape[-1])
  tokens, mask, old = flat(batch.completions), flat(batch.completion_mask), flat(batch.behaviour_logps)
  chosen, teacher_chosen = (jnp.take_along_axis(x, tokens[..., None], -1)[..., 0] for x in (log_p, log_q))
  advantages = jnp.broadcast_to(batch.advantages.reshape(-1, 1), chosen.shape)
  kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
  if form == "per_token":
    advantages, kl = advantages - beta * (old - teacher_chosen), 0.0
  ratio = jnp.exp(chosen - old)
  policy = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.28) * advantages)
  return jnp.sum(jnp.where(mask, -policy + beta * kl, 0.0)) / mask.sum()


@pytest.mark.parametrize("form", ["exact", pytest.param("top_k", marks=pytest.mark.slow), "per_token"])
def test_a_step_is_the_gradient_of_eq_4_over_full_sequences(params, form):
  student, teacher = params
  batch, optimizer = _batch(0), optax.sgd(1.0)
  batch = batch.replace(prompt_mask=np.ones_like(batch.prompt_mask))
  # All tokens are among the likeliest 12, so the coarser KL is the exact one. β at step 1 of 3 lies half way.
  config = OpdConfig(DistillationConfig(kl=form, top_k=VOCAB, beta=0.6, beta_end=0.2))
  update = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, config, steps=3))
  state, metrics = update(init_state(student, optimizer).replace(step=jnp.int32(1)), batch, teacher)
  loss, gradient = jax.jit(jax.value_and_grad(lambda x: _eq4(x, teacher, batch, 0.4, form)))(student)
  np.testing.assert_allclose(metrics["loss"].mean(), loss, rtol=1e-4)
  np.testing.assert_allclose(metrics["beta"].mean(), 0.4, rtol=1e-6)
  moved = jax.tree.map(jnp.subtract, student, state.params)
  norm = optax.global_norm(gradient)
  assert norm > 0.1 and optax.global_norm(jax.tree.map(jnp.subtract, moved, gradient)) <= 1e-4 * norm
  assert metrics["skipped"].sum == 0 and state.step == 2


def test_without_a_reward_the_advantages_do_not_matter(params):
  student, teacher = params
  optimizer, config = optax.sgd(1.0), OpdConfig(reward_weight=0.0)
  update = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, config, steps=1))
  batch = _batch(1)
  one, two = (update(init_state(student, optimizer), b, teacher)[0] for b in (batch, batch.replace(advantages=0 * batch.advantages)))
  jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
  assert optax.global_norm(jax.tree.map(jnp.subtract, one.params, student)) > 0.01


def test_a_teacher_equal_to_the_student_teaches_nothing(params):
  student, _ = params
  optimizer, config = optax.sgd(1.0), OpdConfig(reward_weight=0.0)
  _, metrics = jax.jit(make_opd_update(STUDENT, STUDENT, optimizer, config, steps=1))(init_state(student, optimizer), _batch(2), student)
  np.testing.assert_allclose([metrics["reverse_kl"].mean(), metrics["grad_norm"].mean()], 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exact", "per_token"])
def test_a_group_of_weight_two_is_the_group_given_twice(params, form):
  student, teacher = params
  batch, optimizer = _batch(6), optax.sgd(1.0)
  update = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, OpdConfig(DistillationConfig(kl=form)), steps=1))
  twice = jax.tree.map(lambda x: x[np.array([0, 1, 1, 2])], batch)
  weighed, expected, plain = (
    update(init_state(student, optimizer), of, teacher)[0].params for of in (batch.replace(weights=np.float32([1, 2, 1])), twice, batch)
  )
  moved = optax.global_norm(jax.tree.map(jnp.subtract, expected, student))
  assert moved > 0 and optax.global_norm(jax.tree.map(jnp.subtract, weighed, expected)) <= 1e-5 * moved
  assert optax.global_norm(jax.tree.map(jnp.subtract, weighed, plain)) > 1e-2 * moved


class _FirstTokens:
  """A constraint under which the first six tokens are legal, and nothing else."""

  def states(self, prompts, completions, completion_mask):
    return jnp.broadcast_to(jnp.arange(VOCAB) < 6, (*completions.shape, VOCAB))

  def apply(self, logits, legal):
    return jnp.where(legal, logits, -1e30)


@pytest.mark.parametrize("form", ["exact", "per_token"])
def test_both_models_are_compared_over_the_legal_tokens(params, form):
  student, teacher = params
  batch = _batch(5)
  batch = batch.replace(completions=batch.completions % 6, prompt_mask=np.ones_like(batch.prompt_mask))
  config, optimizer = OpdConfig(DistillationConfig(kl=form), reward_weight=0.0), optax.sgd(1.0)
  update = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, config, steps=1, constraint=_FirstTokens()))
  _, metrics = update(init_state(student, optimizer), batch, teacher)
  log_p, log_q = (jax.nn.log_softmax(_full_log_probs(*of, batch)[..., :6]) for of in ((STUDENT, student), (TEACHER, teacher)))
  mask = batch.completion_mask.reshape(-1, 3)
  if form == "exact":
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
  else:
    kl = batch.behaviour_logps.reshape(-1, 3) - jnp.take_along_axis(log_q, batch.completions.reshape(-1, 3, 1), -1)[..., 0]
  np.testing.assert_allclose(metrics["reverse_kl"].mean(), kl[mask].mean(), rtol=1e-4)
  assert metrics["grad_norm"].mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exact", "per_token"])
def test_an_update_on_a_mesh_in_microbatches_equals_one_device(form):
  batch, optimizer = _batch(3, num_prompts=16, group=3), optax.sgd(1.0)
  results = []
  for mesh, microbatches in ((make_mesh(1, 1, 1, devices=jax.devices()[:1]), 1), (make_mesh(2, 2, 2), 2)):
    state, shardings = start_fresh(STUDENT, optimizer, jax.random.key(7), mesh)
    teacher, _ = init_sharded(lambda key: TEACHER.init(key, *[jnp.ones((1, 1), jnp.int32)] * 3)["params"], jax.random.key(8), mesh)
    config = OpdConfig(DistillationConfig(kl=form), microbatches=microbatches)
    update = jit_update(make_opd_update(STUDENT, TEACHER, optimizer, config, steps=2), mesh, shardings, frozen=(teacher,))
    state, metrics = update(state, batch)
    results.append(jax.device_get((state.params, metrics)))
  assert any("tensor" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(teacher)), "the teacher lies on the mesh by the same rules"
  (expected, expected_metrics), (actual, metrics) = results
  norm = expected_metrics["grad_norm"].sum
  for name in ("loss", "reverse_kl", "grad_norm"):
    np.testing.assert_allclose(metrics[name].mean(), expected_metrics[name].mean(), rtol=1e-5)
  assert optax.global_norm(jax.tree.map(np.subtract, actual, expected)) <= 1e-5 * norm


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exact", "top_k", "per_token"])
def test_pure_distillation_brings_the_student_to_the_teacher(params, form):
  student, teacher = params
  optimizer, steps = optax.adam(1e-2), 60
  config = OpdConfig(DistillationConfig(kl=form, top_k=3, beta=1.0, beta_end=1.0), reward_weight=0.0)
  generate = make_generate(RolloutConfig(STUDENT, group=16, max_new_tokens=3, eos_id=EOS, pad_id=PAD))
  update = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, config, steps=steps))
  watch = jax.jit(make_opd_update(STUDENT, TEACHER, optimizer, OpdConfig(reward_weight=0.0), steps=steps))  # the exact KL
  prompts = _batch(4, num_prompts=4).prompts
  state, kls = init_state(student, optimizer), []
  for step in range(steps):
    rollout = generate(state.params, prompts, np.ones_like(prompts), jax.random.fold_in(jax.random.key(2), step), Sampling.create())
    batch = GroupBatch(
      prompts=rollout.prompts,
      prompt_mask=rollout.prompt_mask,
      completions=rollout.completions,
      completion_mask=rollout.completion_mask,
      behaviour_logps=rollout.behaviour_logps,
      advantages=np.zeros(rollout.finished.shape, np.float32),
      weights=np.ones(len(prompts), np.float32),
      keep=np.ones(len(prompts), bool),
    )
    if step in (0, steps - 1):
      kls.append(float(watch(state, batch, teacher)[1]["reverse_kl"].mean()))
    state, metrics = update(state, batch, teacher)
    assert metrics["logp_gap"].mean() < 1e-4
  assert kls[0] > 0.3 and kls[1] < 0.3 * kls[0]


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ({"reward_weight": -1.0}, "reward_weight"),
    ({"temperature": 0.0}, "temperature"),
    ({"reward_weight": 0.0, "distillation": DistillationConfig(beta=0.0, beta_end=0.0)}, "reward_weight and beta"),
  ],
)
def test_settings_that_cannot_hold_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    OpdConfig(**bad)
