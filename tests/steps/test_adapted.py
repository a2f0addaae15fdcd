"""Every update on adapters is that on all parameters by the chain rule, and leaves the base as it is, on one device and on eight."""

import functools

import jax
import numpy as np
import optax
import pytest

from gr2_jax.models.adapters import TARGETS, Lora, merge
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.transformer import Decoder, abstract_boxed, init_params
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.opd import OpdConfig, make_opd_update
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.start import start_adapted
from gr2_jax.steps.update import make_update, only_rows
from gr2_jax.training.mesh import jit_update, make_mesh, state_shardings
from gr2_jax.training.state import OptimizerConfig, init_state, make_optimizer

LORA = Lora(rank=2, alpha=3.0, targets=TARGETS, rows=4)
SHAPE = {"vocab_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_width": 32, "tie_embedding": False}
DECODER = Decoder(ModelConfig(num_layers=2, width=16, **SHAPE))
ONE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def base():
  """Far enough from uniform."""
  return jax.tree.map(lambda x: x * 4.0, init_params(DECODER, jax.random.key(0)))


@pytest.fixture(scope="module")
def adapters(base):
  """After some training."""
  state, _ = start_adapted(DECODER, optax.sgd(1.0), LORA, base, jax.random.key(1), ONE)
  random = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), jax.device_get(state.params))


def _lm():
  random = np.random.default_rng(0)
  places = np.broadcast_to(np.arange(9), (8, 9))
  batch = {"tokens": random.integers(0, 16, (8, 9)), "positions": places, "segment_ids": places // 5 + 1, "parts": places % 3}
  loss = make_lm_loss(DECODER, {"reasoning": 0.5, "answer": 1.0})
  return functools.partial(make_update, loss_fn=loss), jax.tree.map(np.int32, batch), ()


def _groups():
  random, shape = np.random.default_rng(1), (8, 2, 3)
  return GroupBatch(
    prompts=random.integers(0, 16, (8, 4)).astype(np.int32),
    prompt_mask=np.arange(4) < random.integers(1, 5, (8, 1)),
    completions=random.integers(0, 16, shape).astype(np.int32),
    completion_mask=np.arange(3) < random.integers(1, 4, (8, 2, 1)),
    behaviour_logps=(-2.7 + 0.2 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=(8, 2)).astype(np.float32),
    weights=np.ones(8, np.float32),
    keep=random.random(8) < 0.8,
  )


def _policy():
  def make(optimizer, join=None):
    return make_policy_update(DECODER, optimizer, UpdateConfig(microbatches=2), join=join)

  return make, _groups(), ()


def _opd():
  teacher = Decoder(ModelConfig(num_layers=1, width=16, **SHAPE))
  config = OpdConfig(DistillationConfig(kl="exact"))

  def make(optimizer, join=None):
    return make_opd_update(DECODER, teacher, optimizer, config, steps=10, join=join)

  return make, _groups(), (init_params(teacher, jax.random.key(7)),)


@pytest.mark.parametrize("case", [_lm, _policy, _opd])
def test_a_step_follows_the_gradient_of_all_parameters_by_the_chain_rule(case, base, adapters):
  (make, batch, frozen), sgd = case(), optax.sgd(1.0)
  merged = jax.jit(merge, static_argnums=0)(LORA, base, adapters)
  whole, _ = jax.jit(make(sgd))(init_state(merged, sgd), batch, *frozen)
  gradient = jax.tree.map(lambda x, y: np.asarray(x - y), merged, whole.params)
  state, metrics = jax.jit(make(sgd, join=LORA.join))(init_state(adapters, sgd), batch, base, *frozen)
  moved = jax.tree.map(lambda x, y: np.asarray(x - y), adapters, state.params)
  for target in TARGETS:
    for layer in range(2):
      a, b, down = (
        np.asarray(of[layer]) for of in (*(adapters["layers"][target][f"lora_{x}"] for x in "ab"), gradient["layers"][target]["kernel"])
      )
      flat = down.reshape(a.size // 2, b.size // 2)
      expected = 1.5 * flat @ b.reshape(2, -1).T, 1.5 * a.reshape(-1, 2).T @ flat
      found = moved["layers"][target]["lora_a"][layer].reshape(-1, 2), moved["layers"][target]["lora_b"][layer].reshape(2, -1)
      for of, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(of, wanted, atol=2e-3 * np.abs(wanted).max(), err_msg=target)
  for table in ("embedding", "output"):
    np.testing.assert_allclose(moved[f"{table}_rows"], gradient[table][-4:], atol=2e-3 * np.abs(gradient[table]).max())
  assert np.isfinite(metrics["loss"].mean()) and metrics["grad_norm"].mean() == pytest.approx(float(optax.global_norm(moved)), rel=1e-3)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_eight_devices_train_what_one_trains_and_the_base_stays(rule, base):
  make, batch, _ = _lm()
  optimizer = make_optimizer(OptimizerConfig(1e-2, rule=rule, weight_decay=0.1), 10)
  found = []
  for mesh in (ONE, make_mesh(2, 2, 2)):
    placed = jax.device_put(base, state_shardings(abstract_boxed(DECODER), mesh))
    before = jax.device_get(placed)
    state, shardings = start_adapted(DECODER, optimizer, LORA, placed, jax.random.key(1), mesh)
    update = jit_update(make(optimizer, join=LORA.join), mesh, shardings, frozen=(placed,))
    for _ in range(3):
      state, metrics = update(state, batch)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(placed))
    assert metrics["skipped"].sum == 0
    found.append(jax.device_get(state))
  start, _ = start_adapted(DECODER, optimizer, LORA, base, jax.random.key(1), ONE)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found[0].params, found[1].params)
  assert all(np.abs(x - y).max() > 1e-3 for x, y in zip(jax.tree.leaves(found[0].params), jax.tree.leaves(start.params), strict=True))
  # Adam has two moments of what it trains, Muon one of the factors.
  trained, held = (sum(leaf.nbytes for leaf in jax.tree.leaves(of)) for of in (found[0].params, found[0].opt_state))
  assert trained <= held <= 2 * trained + 100 and trained < 0.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(base))


def test_only_rows_of_new_tokens_move_in_their_warm_up(base, adapters):
  make, batch, _ = _lm()
  optimizer = only_rows(optax.adamw(0.1, weight_decay=0.1), 12)
  state, _ = jax.jit(make(optimizer, join=LORA.join))(init_state(adapters, optimizer), batch, base)
  jax.tree.map(np.testing.assert_array_equal, state.params["layers"], adapters["layers"])
  assert all(np.abs(state.params[name] - adapters[name]).min() > 0 for name in ("embedding_rows", "output_rows"))
