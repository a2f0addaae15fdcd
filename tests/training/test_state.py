"""Schedules at their corners, and what the optimizer leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.training.state import OptimizerConfig, init_state, make_optimizer, make_schedule


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    # 2 warm-up steps of 10, then 8 steps: half-way (step 6) linear is 1/2, cosine is (1 + cos(pi/2)) / 2 = 1/2.
    ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
    ("linear", [0.0, 0.5, 1.0, 0.5, 0.0]),
    ("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]),
  ],
)
def test_schedule(schedule, expected):
  rate = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2), total_steps=10)
  np.testing.assert_allclose([rate(s) for s in (0, 1, 2, 6, 10)], expected, atol=1e-6)


def test_no_warmup_starts_at_the_full_rate():
  assert float(make_schedule(OptimizerConfig(learning_rate=0.3, schedule="linear"), 10)(0)) == pytest.approx(0.3)


def test_bad_settings_say_what_to_do():
  with pytest.raises(ValueError, match=r"warmup_steps: 11 of 10 steps"):
    make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=11), 10)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *(("learning_rate", value) for value in (0.0, -1.0, float("nan"), float("inf"), 1e300, "1")),
    *(("schedule", "exponential"), ("rule", "sgd"), ("warmup_steps", -1), ("weight_decay", -0.1), ("clip_norm", 0.0), ("b2", 1.0)),
  ],
)
def test_settings_that_cannot_hold_are_named(name, value):
  with pytest.raises(ValueError, match=f"^{name}: "):
    OptimizerConfig(**{"learning_rate": 1.0, name: value})


def test_decay_moves_weights_but_no_norm_scales():
  params = {"dense": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones((3, 2))}}
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), total_steps=10)
  state = init_state(params, optimizer)
  zeros = {"dense": {"kernel": jnp.zeros((2, 2))}, "norm": {"scale": jnp.zeros((3, 2))}}
  updates, _ = optimizer.update(zeros, state.opt_state, state.params)
  moved = optax.apply_updates(params, updates)
  # Zero gradients leave only the decay: 1 - 0.1 * 0.5 * 1 = 0.95.
  np.testing.assert_allclose(moved["dense"]["kernel"], 0.95, rtol=1e-6)
  np.testing.assert_array_equal(moved["norm"]["scale"], 1.0)


def test_first_adam_step_is_the_rate_whatever_the_gradient():
  params = {"w": jnp.zeros(2)}
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), total_steps=10)
  updates, _ = optimizer.update({"w": jnp.array([300.0, -4.0])}, optimizer.init(params), params)
  # With bias correction m / sqrt(v) is the sign of the gradient in the first step.
  np.testing.assert_allclose(updates["w"], [-0.1, 0.1], rtol=1e-3)


def test_muon_orthogonalises_each_layers_matrices_and_leaves_the_rest_to_adam():
  params = init_params(Decoder(preset("test", vocab_size=64)), jax.random.key(0))
  grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, rule="muon", clip_norm=1e9), 10)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  # Adam's first step has the sign of the gradient and one size everywhere.
  for tree in ("embedding", "final_norm"):
    for update, grad in zip(jax.tree.leaves(updates[tree]), jax.tree.leaves(grads[tree]), strict=True):
      np.testing.assert_allclose(update, -np.sign(grad) * np.abs(update).max(), rtol=1e-3)
  # [layers, in, heads, head_dim] for the query, [layers, heads, head_dim, out] for the output: both 32 x 32 in each layer. Five
  # Newton-Schulz steps bring all singular values near 1, where those of a random square matrix reach down to 0.
  for name in ("q", "out"):
    for layer in updates["layers"][name]["kernel"].reshape(2, 32, 32):
      values = np.linalg.svd(layer / 0.1, compute_uv=False) / (0.2 * np.sqrt(32))
      assert np.median(values) > 0.5 and values.max() < 1.5
      assert np.linalg.norm(layer) / 0.1 / 32 == pytest.approx(0.2, rel=0.3)  # the size of an AdamW update
