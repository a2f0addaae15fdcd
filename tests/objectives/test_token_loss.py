"""Token log-probabilities against the plain softmax, and the decoupled loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.objectives.token_loss import distillation_terms, parts_cross_entropy, token_log_probs


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


@pytest.mark.parametrize("chunk", [4, None])
def test_reverse_kl_and_its_gradient_are_those_of_the_whole_vocabulary(chunk):
  keys = jax.random.split(jax.random.key(0), 6)
  hidden, table = jax.random.normal(keys[0], (2, 5, 4)), jax.random.normal(keys[1], (11, 4))
  teacher_hidden, teacher_table = jax.random.normal(keys[2], (2, 5, 6)), jax.random.normal(keys[3], (11, 6))
  targets = jax.random.randint(keys[4], (2, 5), 0, 11)
  legal = jax.random.bernoulli(keys[5], 0.7, (2, 5, 11)).at[..., 0].set(True)
  mask = lambda logits, legal: jnp.where(legal, logits, -1e30)

  def plain(hidden, table, teacher_hidden, teacher_table):
    log_p = jax.nn.log_softmax(mask(hidden @ table.T, legal) / 0.7)
    log_q = jax.nn.log_softmax(mask(teacher_hidden @ teacher_table.T, legal) / 0.7)
    chosen = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return chosen, -(jnp.exp(log_p) * log_p).sum(-1), (jnp.exp(log_p) * (log_p - log_q)).sum(-1)

  def chunked(hidden, table, teacher_hidden, teacher_table):
    student, teacher = (lambda h, legal, w=w: mask(h @ w.T, legal) for w in (table, teacher_table))
    return distillation_terms(student, teacher, hidden, teacher_hidden, targets, legal, chunk=chunk, temperature=0.7)

  arrays = (hidden, table, teacher_hidden, teacher_table)
  for ours, theirs in zip(chunked(*arrays), plain(*arrays), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  kl_sum = lambda f: lambda *a: jnp.sum(jnp.sin(f(*a)[2]))
  ours, theirs = (jax.grad(kl_sum(f), (0, 1, 2, 3))(*arrays) for f in (chunked, plain))
  for student in (0, 1):
    np.testing.assert_allclose(ours[student], theirs[student], atol=1e-5)
    assert np.abs(theirs[student]).max() > 0.01
  for teacher in (2, 3):
    assert not ours[teacher].any() and theirs[teacher].any()


def test_no_kl_from_a_teacher_that_is_the_student():
  hidden, table = jax.random.normal(jax.random.key(0), (7, 4)), jax.random.normal(jax.random.key(1), (11, 4))
  logits_fn = lambda h: h @ table.T
  kl = lambda h: distillation_terms(logits_fn, logits_fn, h, hidden, jnp.zeros(7, int))[2]
  np.testing.assert_allclose(kl(hidden), 0, atol=1e-6)
  np.testing.assert_allclose(jax.grad(lambda h: kl(h).sum())(hidden), 0, atol=1e-5)


def test_logits_of_a_large_vocabulary_exist_for_few_tokens_at_a_time():
  seen = []

  def logits_fn(h):
    seen.append(h.shape[0])
    return h @ jnp.zeros((4, 152_960))

  jax.eval_shape(lambda h: token_log_probs(logits_fn, h, jnp.zeros((2, 1000), int)), jnp.zeros((2, 1000, 4)))
  assert seen[-1] * 152_960 <= 2**25 and seen[-1] > 150


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


def test_token_weights_count_a_row_as_often_as_they_say():
  random = np.random.default_rng(0)
  log_probs, parts = jnp.asarray(random.normal(size=(3, 5)), jnp.float32), jnp.asarray(random.integers(0, 3, (3, 5)))
  rows = jnp.asarray([0, 0, 1])
  weighed = parts_cross_entropy(log_probs, parts, (0.1, 1.0), jnp.asarray([[2.0], [1.0], [0.0]]))
  repeated = parts_cross_entropy(log_probs[rows], parts[rows], (0.1, 1.0))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), weighed, repeated)
  ones = parts_cross_entropy(log_probs, parts, (0.1, 1.0), jnp.ones((3, 5)))
  jax.tree.map(np.testing.assert_array_equal, ones, parts_cross_entropy(log_probs, parts, (0.1, 1.0)))


def test_tokens_that_weigh_little_keep_their_mean():
  # Weights 0.1 and 0.3: (0.1 * 1 + 0.3 * 3) / 0.4 = 2.5. Of no weight at all: 0.
  log_probs, parts = jnp.array([[-1.0, -3.0]]), jnp.array([[1, 1]])
  np.testing.assert_allclose(parts_cross_entropy(log_probs, parts, (1.0,), jnp.array([[0.1, 0.3]]))[0], 2.5, rtol=1e-6)
  assert parts_cross_entropy(log_probs, parts, (1.0,), jnp.zeros((1, 2)))[0] == 0
