import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig
from gr2_jax.rollout.layout import pack
from gr2_jax.steps.rl import RlBatch, RlConfig, make_rl_update
from gr2_jax.training.state import init_state

VOCAB = 24
DECODER = Decoder(preset("test", VOCAB))


def _lay_plainly(lengths, rows, width):
  """First-fit decreasing by hand: (row, column) of each completion, or None where one does not fit."""
  free, found = [width] * rows, {}
  for g in sorted(range(len(lengths)), key=lambda g: -lengths[g]):
    row = next((r for r in range(rows) if free[r] >= lengths[g]), None)
    if row is None:
      return None
    found[g] = row, width - free[row]
    free[row] -= lengths[g]
  return found


def test_every_token_that_is_fed_has_one_place():
  random, group, length = np.random.default_rng(0), 5, 7
  lay, outcomes = jax.jit(pack, static_argnums=1), set()
  for rows in (2, 3, 5):
    for _ in range(20):
      lengths = random.integers(0, length + 1, (2, group))
      layout, fits = jax.device_get(lay(np.arange(length) < lengths[..., None], rows))
      fed = np.maximum(lengths - 1, 0)
      plain = [_lay_plainly(sizes, rows, length - 1) for sizes in fed]
      outcomes.add(bool(fits))
      assert fits == all(plain)
      for p in range(2) if fits else ():
        expected = np.full((rows, length - 1), -1)
        for g, (row, column) in plain[p].items():
          expected[row, column : column + fed[p, g]] = g * length + np.arange(fed[p, g])
          np.testing.assert_array_equal(layout.place[p, g, : fed[p, g]], row * (length - 1) + column + np.arange(fed[p, g]))
        np.testing.assert_array_equal(layout.source[p], expected)
  assert outcomes == {False, True}


def _batch(seed, group=5, prompt_length=6, length=8):
  """Completions of which two fill a row, one without any token to learn from, and one with a hole in its mask."""
  random = np.random.default_rng(seed)
  shape = (4, group, length)
  lengths = random.integers(1, length // 2, (4, group, 1))
  lengths[:, 0], lengths[0, 1] = length, 0
  mask = np.arange(length) < lengths
  mask[1, 0, 2] = False
  return RlBatch(
    prompts=random.integers(0, VOCAB, (4, prompt_length)).astype(np.int32),
    prompt_mask=np.arange(prompt_length) < random.integers(1, prompt_length + 1, (4, 1)),
    completions=random.integers(0, VOCAB, shape).astype(np.int32),
    completion_mask=mask,
    behaviour_logps=(-3 + 0.3 * random.normal(size=shape)).astype(np.float32),
    advantages=random.normal(size=shape[:2]).astype(np.float32),
    keep=np.arange(4) != 2,
  )


@pytest.mark.parametrize(
  "loss, cuts",
  [
    (DAPO, {"microbatches": 2}),
    pytest.param(PolicyLossConfig("sequence_mean", "sequence", importance_cap=1.5), {"minibatches": 2}, marks=pytest.mark.slow),
  ],
)
def test_packed_updates_equal_unpacked_ones(loss, cuts):
  params = jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))
  optimizer = optax.sgd(1.0)
  plain, packed = (jax.jit(make_rl_update(DECODER, optimizer, RlConfig(loss, **cuts, packed_rows=rows))) for rows in (0, 3))
  roomy = _batch(0)
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
    assert moved > 0 and optax.global_norm(jax.tree.map(jnp.subtract, state.params, expected.params)) <= 1e-5 * moved


def test_a_negative_number_of_rows_is_refused():
  with pytest.raises(ValueError, match="packed_rows must be 0"):
    RlConfig(packed_rows=-1)
