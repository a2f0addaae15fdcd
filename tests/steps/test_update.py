"""One gradient step, whatever the loss: exact in parts, with frozen models, on some rows alone, and without steps that are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.steps.update import join_parts, make_update, only_rows, over_parts, split_parts
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import init_state

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 3)).astype(np.float32), RANDOM.normal(size=8).astype(np.float32)
WEIGHTS = np.float32([1, 2, 1, 0, 3, 1, 1, 2])
PARAMS = {"w": jnp.asarray(RANDOM.normal(size=3), jnp.float32)}
BATCH = {"x": X, "y": Y, "weights": WEIGHTS}
SGD = optax.sgd(0.1)


def squares(params, batch, *, total):
  """Squared errors of a linear model over the weights of the whole batch."""
  errors = jnp.square(batch["x"] @ params["w"] - batch["y"]) * batch["weights"]
  return errors.sum() / total, {"loss": Metric(errors.sum(), batch["weights"].sum())}


def total_weight(step, batch):
  return {"total": batch["weights"].sum()}


def own_squares(params, batch):
  return squares(params, batch, total=batch["weights"].sum())


def expected_step(params):
  gradient = jax.grad(lambda w: own_squares({"w": w}, BATCH)[0])(params["w"])
  return params["w"] - 0.1 * gradient, gradient


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_parts_give_the_step_of_the_whole_batch(microbatches):
  update = jax.jit(make_update(SGD, squares, microbatches=microbatches, whole_batch=total_weight))
  state, metrics = update(init_state(PARAMS, SGD), BATCH)
  expected, gradient = expected_step(PARAMS)
  np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["grad_norm"].mean(), jnp.linalg.norm(gradient), rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"].mean(), own_squares(PARAMS, BATCH)[0], rtol=1e-5)
  assert metrics["loss"].count == WEIGHTS.sum() and metrics["skipped"].sum == 0 and state.step == 1


def test_what_all_parts_share_may_depend_on_the_step():
  seen = make_update(
    SGD,
    lambda params, batch, *, rate: (rate * params["w"].sum(), {"loss": Metric(rate, 1.0)}),
    whole_batch=lambda step, batch: {"rate": 1.0 / (1 + step)},
  )
  state = init_state(PARAMS, SGD)
  for step in range(3):
    state, metrics = jax.jit(seen)(state, BATCH)
    np.testing.assert_allclose(metrics["loss"].mean(), 1 / (1 + step), rtol=1e-6)


def test_frozen_models_are_read_and_get_no_gradient():
  def towards(params, batch, teacher, scale):
    loss = scale * jnp.square(params["w"] - teacher["w"]).sum()
    return loss, {"loss": Metric(loss, 1.0)}

  teacher = {"w": jnp.ones(3)}
  state, _ = jax.jit(make_update(SGD, towards))(init_state(PARAMS, SGD), BATCH, teacher, jnp.float32(0.5))
  np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 0.1 * (PARAMS["w"] - 1), rtol=1e-5)
  assert jax.tree.structure(state.opt_state) == jax.tree.structure(SGD.init(PARAMS)), "the optimizer knows nothing of the teacher"


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(microbatches):
  optimizer = optax.adam(0.1)
  update = jax.jit(make_update(optimizer, squares, microbatches=microbatches, whole_batch=total_weight))
  state, _ = update(init_state(PARAMS, optimizer), BATCH)
  spoilt = BATCH | {"y": np.where(np.arange(8) == 5, np.nan, Y)}
  skipped, metrics = update(state, spoilt)
  jax.tree.map(np.testing.assert_array_equal, (skipped.params, skipped.opt_state), (state.params, state.opt_state))
  assert metrics["skipped"].mean() == 1 and skipped.step == 2
  assert all(metric.count == 0 for name, metric in metrics.items() if name != "skipped")


def test_parts_are_strided_and_come_back():
  parts = split_parts({"x": np.arange(6)}, 3)["x"]
  np.testing.assert_array_equal(parts, [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(join_parts(parts), np.arange(6))
  carry, metrics = over_parts(lambda carry, part: (carry + part.max(), {"sum": Metric(part.sum(), 1.0)}), 0, np.arange(6), 3)
  assert carry == 3 + 4 + 5 and metrics["sum"].sum == 15 and metrics["sum"].count == 3


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="microbatches"):
    make_update(SGD, squares, microbatches=3, whole_batch=total_weight)(init_state(PARAMS, SGD), BATCH)


@pytest.mark.parametrize("tied", [True, False])
def test_only_new_rows_of_the_token_tables_move(tied):
  params = {"embedding": jnp.ones((5, 2)), "layers": {"q": jnp.ones((2, 2))}} | ({} if tied else {"output": jnp.ones((5, 2))})
  # Weight decay too must not reach the rest.
  optimizer = only_rows(optax.adamw(0.1, weight_decay=0.1), 3)

  def loss(params, batch):
    value = sum(jnp.square(leaf + 1).sum() for leaf in jax.tree.leaves(params))
    return value, {"loss": Metric(value, 1.0)}

  state, _ = jax.jit(make_update(optimizer, loss))(init_state(params, optimizer), BATCH)
  np.testing.assert_array_equal(state.params["layers"]["q"], params["layers"]["q"])
  for name in params.keys() - {"layers"}:
    np.testing.assert_array_equal(state.params[name][:3], params[name][:3])
    assert (state.params[name][3:] < 1).all()
