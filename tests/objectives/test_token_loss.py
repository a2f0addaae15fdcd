"""Token log-probabilities against the plain softmax, and the decoupled loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.objectives.token_loss import parts_cross_entropy, token_log_probs


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_neither_values_nor_gradients(chunk):
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, table = jax.random.normal(keys[0], (2, 5, 4)), jax.random.normal(keys[1], (11, 4))
  targets = jax.random.randint(keys[2], (2, 5), 0, 11)

  def plain(table, hidden):
    log_p = jax.nn.log_softmax(hidden @ table.T / 0.7)
    return jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0], -(jnp.exp(log_p) * log_p).sum(-1)

  def chunked(table, hidden):
    return token_log_probs(lambda h: h @ table.T, hidden, targets, chunk=chunk, temperature=0.7)

  for ours, theirs in zip(chunked(table, hidden), plain(table, hidden), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  total = lambda f: lambda *a: sum(jnp.sum(jnp.sin(x)) for x in f(*a))
  for ours, theirs in zip(jax.grad(total(chunked), (0, 1))(table, hidden), jax.grad(total(plain), (0, 1))(table, hidden), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_each_part_is_normalised_by_its_own_tokens():
  # Reasoning tokens: nll 1 and 3, mean 2. Answer token: nll 5. λ_r = 0.1, λ_o = 1: 0.1 * 2 + 1 * 5 = 5.2.
  log_probs = jnp.array([[-1.0, -3.0, -5.0, -100.0]])
  parts = jnp.array([[1, 1, 2, 0]])
  loss, terms = parts_cross_entropy(log_probs, parts, (0.1, 1.0))
  np.testing.assert_allclose(loss, 5.2, rtol=1e-6)
  assert [(float(s), float(c)) for s, c in terms] == [(4.0, 2.0), (5.0, 1.0)]


def test_a_missing_part_adds_nothing():
  loss, _ = parts_cross_entropy(jnp.array([[-1.0, -3.0]]), jnp.array([[2, 2]]), (0.1, 1.0))
  np.testing.assert_allclose(loss, 2.0, rtol=1e-6)
