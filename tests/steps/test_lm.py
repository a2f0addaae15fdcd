"""The likelihood update: equal on every mesh, still where it must be, and able to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_boxed
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.update import make_update
from gr2_jax.training.mesh import init_sharded, jit_update, make_mesh
from gr2_jax.training.state import TrainState

V = 64


def make(mesh, optimizer=None):
  decoder = Decoder(preset("test", V))
  optimizer = optimizer or optax.adamw(1e-2)

  def init(key):
    params = init_boxed(decoder, key)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

  state, shardings = init_sharded(init, jax.random.key(0), mesh)
  update = make_update(optimizer, make_lm_loss(decoder, {"reasoning": 0.1, "answer": 1.0}))
  return state, jit_update(update, mesh, shardings)


def batch(seed=0, rows=8, length=12):
  rng = np.random.default_rng(seed)
  cut = rng.integers(3, length - 3, rows)[:, None]
  t = np.arange(length)
  return {
    "tokens": rng.integers(0, V, (rows, length)).astype(np.int32),
    "positions": np.where(t < cut, t, t - cut).astype(np.int32),
    "segment_ids": np.where(t < cut, 1, 2).astype(np.int32),
    "parts": rng.integers(0, 3, (rows, length)).astype(np.int32),
  }


def one_device():
  return make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_sharded_update_equals_one_device(shape):
  results = []
  # Plain SGD: Adam's first step is the sign of the gradient, which would blow rounding up.
  for mesh in (one_device(), make_mesh(*shape)):
    state, update = make(mesh, optax.sgd(0.1))
    for seed in range(2):
      state, metrics = update(state, batch(seed))
    results.append((jax.device_get(state.params), float(metrics["loss"].mean())))
  (params, loss), (sharded_params, sharded_loss) = results
  np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), params, sharded_params)


def test_parameters_are_really_cut_over_the_mesh():
  state, _ = make(make_mesh(2, 2, 2))
  shard = lambda x: x.addressable_shards[0].data.shape
  embedding = state.params["embedding"]
  assert shard(embedding) == (embedding.shape[0] // 2, embedding.shape[1] // 2)  # vocabulary over tensor, width over fsdp
  assert shard(state.params["layers"]["q"]["kernel"])[1:3] == (16, 2)
  assert shard(state.opt_state[0].mu["embedding"]) == shard(embedding)


def test_an_update_that_is_not_finite_changes_nothing_on_any_device():
  state, update = make(make_mesh(2, 2, 2))
  state = state.replace(params=state.params | {"embedding": state.params["embedding"].at[3, 0].set(jnp.inf)})
  before = jax.tree.map(np.array, (state.params, state.opt_state))
  state, metrics = update(state, batch())
  jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)
  assert state.step == 1 and metrics["skipped"].sum == 1
  assert all(metric.sum == metric.count == 0 for name, metric in metrics.items() if name != "skipped")


def test_learns_a_sequence_by_heart():
  state, update = make(one_device())
  data = batch(rows=2) | {"parts": np.full((2, 12), 2, np.int32)}
  losses = []
  for _ in range(60):
    state, metrics = update(state, data)
    losses.append(float(metrics["nll_answer"].mean()))
  assert losses[0] > 3.5 and losses[-1] < 0.1


def test_a_segment_never_predicts_the_start_of_the_next():
  # Only the first token of the second segment is marked: nothing is learnt from it.
  state, update = make(one_device())
  data = batch(rows=1)
  first = int(np.argmax(data["segment_ids"][0] == 2))
  data["parts"] = np.zeros_like(data["parts"])
  data["parts"][0, first] = 2
  _, metrics = update(state, data)
  assert float(metrics["nll_answer"].count) == 0 and float(metrics["loss"].mean()) == 0


def test_a_slate_of_weight_two_is_the_slate_given_twice():
  data, weights = batch(rows=3), np.float32([1, 2, 1])
  loss = jax.jit(jax.value_and_grad(make_lm_loss(Decoder(preset("test", V)), {"reasoning": 0.1, "answer": 1.0}), has_aux=True))
  params = jax.device_get(make(one_device())[0].params)
  weighed, twice, ones, plain = (
    loss(params, of)
    for of in (
      data | {"weights": np.repeat(weights[:, None], 12, axis=1)},
      {name: rows[np.array([0, 1, 1, 2])] for name, rows in data.items()},
      data | {"weights": np.ones((3, 12), np.float32)},
      data,
    )
  )
  for found, expected in ((weighed, twice), (ones, plain)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
  assert abs(weighed[0][0] - plain[0][0]) > 1e-4


def test_mesh_that_does_not_fit_says_so():
  with pytest.raises(ValueError, match="8 devices"):
    make_mesh(3, 1, 1)
