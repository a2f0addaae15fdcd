"""Every form of the distillation term has the gradient of the reverse KL; the two that do not are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.objectives.distillation import DistillationConfig, beta_at, distilled_advantages, make_kl, merge_tail, reverse_kl
from gr2_jax.objectives.policy import DAPO, policy_loss

V, T = 4, 3  # tokens and places of the tiny model below


def _kl(p, q):
  return jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1)


def _pair(seed, rows=5, size=11, scale=2.0):
  student, teacher = np.random.default_rng(seed).normal(scale=scale, size=(2, rows, size)).astype(np.float32)
  return student, teacher - np.log(np.exp(teacher).sum(axis=-1, keepdims=True))


def _value_and_grad(kl):
  """`f(logits, teacher)`: of the sum over the rows, as a function of the student's logits."""
  return jax.jit(jax.value_and_grad(lambda logits, teacher: kl(jax.nn.log_softmax(logits), teacher).sum()))


# exact


def test_exact_equals_the_autodiff_of_the_whole_sum():
  logits, teacher = _pair(0)
  ours = _value_and_grad(make_kl(DistillationConfig()))(logits, teacher)
  plain = _value_and_grad(lambda log_p, log_q: _kl(jnp.exp(log_p), jnp.exp(log_q)))(logits, teacher)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, plain)
  assert np.abs(plain[1]).max() > 0.1


def test_the_clip_bounds_what_a_token_weighs_in_the_gradient_and_leaves_the_value():
  logits, teacher = _pair(1)
  value, gradient = _value_and_grad(lambda p, q: reverse_kl(p, q, clip=0.5))(logits, teacher)
  np.testing.assert_allclose(value, jax.jit(_kl)(jax.nn.softmax(logits), np.exp(teacher)).sum(), rtol=1e-5)
  log_ratio = np.asarray(jax.nn.log_softmax(logits) - teacher)
  assert (np.abs(log_ratio) > 0.5).mean() > 0.5
  expected = jax.jit(jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * np.clip(log_ratio, -0.5, 0.5))))(logits)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


# top_k


def _coarse_kl(logits, teacher, k, student_order):
  """By sets, a row at a time; `student_order`: tokens by falling probability, which the derivative holds fixed."""
  total = 0.0
  for row, log_q, order in zip(logits, teacher, student_order, strict=True):
    p, q = jax.nn.softmax(row), jnp.exp(log_q)
    head = sorted({*order[:k].tolist(), *np.argsort(-np.asarray(log_q))[:k].tolist()})
    tail = [i for i in range(len(p)) if i not in head]
    total += sum(p[i] * jnp.log(p[i] / q[i]) for i in head)
    if tail:
      mass, teacher_mass = p[np.array(tail)].sum(), q[np.array(tail)].sum()
      total += mass * jnp.log(mass / teacher_mass)
  return total


@pytest.mark.parametrize("k", [1, 3, 11])
def test_top_k_is_the_kl_of_the_coarser_distributions_in_value_and_gradient(k):
  logits, teacher = _pair(2, rows=3)
  ours = _value_and_grad(make_kl(DistillationConfig(kl="top_k", top_k=k)))(logits, teacher)
  order = np.argsort(-logits, axis=-1)
  expected = jax.jit(jax.value_and_grad(lambda x: _coarse_kl(x, teacher, k, order)))(logits)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected)


_EXACT = _value_and_grad(reverse_kl)
_MERGED = [_value_and_grad(lambda p, q, k=k: reverse_kl(*merge_tail(p, q, k))) for k in (1, 2, 4, 7, 100)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_top_k_is_a_lower_bound_that_rises_to_the_exact_value_and_gradient(seed):
  logits, teacher = _pair(seed, rows=2, size=7)
  exact, exact_gradient = _EXACT(logits, teacher)
  found = [merged(logits, teacher) for merged in _MERGED]
  values = [float(value) for value, _ in found]
  assert all(low <= high + 1e-5 for low, high in itertools.pairwise([0.0, *values, float(exact)]))
  for value, gradient in found[-2:]:  # nothing is left to merge
    np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-5)


def test_tokens_out_of_reach_of_both_add_nothing():
  logits, teacher = _pair(3)
  legal = np.arange(11) < 6
  for form in ("exact", "top_k"):
    kl = make_kl(DistillationConfig(kl=form, top_k=8))  # more than the legal tokens
    of_logits = jax.jit(lambda x, y, kl=kl: kl(jax.nn.log_softmax(x), jax.nn.log_softmax(y)))
    masked = lambda x, f=of_logits: f(jnp.where(legal, x, -1e30), jnp.where(legal, teacher, -1e30))
    np.testing.assert_allclose(masked(logits), of_logits(logits[:, :6], teacher[:, :6]), atol=1e-5)
    assert np.isfinite(jax.jit(jax.grad(lambda x, f=masked: f(x).sum()))(logits)).all()


# per_token, in expectation over all sequences of a tiny model: a table of logits for every prefix.


def _prefixes():
  return [prefix for length in range(T) for prefix in itertools.product(range(V), repeat=length)]


_ROW = {prefix: row for row, prefix in enumerate(_prefixes())}
_SEQUENCES = np.array(list(itertools.product(range(V), repeat=T)))
_ROWS = np.array([[_ROW[tuple(sequence[:place])] for place in range(T)] for sequence in _SEQUENCES.tolist()])  # table row of each place


def _log_probs(table):
  """Log-probabilities `[V^T, T]` of the tokens of all sequences."""
  return jnp.take_along_axis(jax.nn.log_softmax(table)[_ROWS], _SEQUENCES[..., None], axis=-1)[..., 0]


def _expected(per_sequence, table):
  """The gradient that sampling would give on average: E over sequences of the gradient, the samples held fixed."""

  @jax.jit
  def gradient(table):
    weights = jnp.exp(_log_probs(table).sum(axis=1))
    return jax.grad(lambda x: jnp.sum(weights * per_sequence(x)))(table)

  return gradient(table)


def _place_kls(table, teacher, places, clip=np.inf):
  kls = reverse_kl(jax.nn.log_softmax(table), jax.nn.log_softmax(teacher), clip)  # of every prefix
  return kls[_ROWS][:, :places].sum(axis=1)


@pytest.fixture(scope="module")
def tables():
  student, teacher = np.random.default_rng(4).normal(scale=1.5, size=(2, len(_ROW), V)).astype(np.float32)
  return student, teacher


@pytest.mark.parametrize("clip", [np.inf, 0.7])
def test_per_token_equals_beta_times_the_gradient_of_the_kl_at_every_place(tables, clip):
  student, teacher = tables
  beta = 0.3

  def loss(x):
    old, log_probs = jax.lax.stop_gradient(_log_probs(x)), _log_probs(x)
    advantages = distilled_advantages(jnp.zeros(len(_SEQUENCES)), old - _log_probs(teacher), beta, clip)
    one = lambda *row: policy_loss(*row, DAPO).loss_sum
    return jax.vmap(one)(log_probs, old, advantages, jnp.ones(log_probs.shape))

  actual = _expected(loss, student)
  np.testing.assert_allclose(actual, beta * _expected(lambda x: _place_kls(x, teacher, T, clip), student), atol=1e-5)
  assert np.abs(actual).max() > 0.01


def test_it_is_the_gradient_of_the_sequence_kl_for_one_place_and_not_for_more(tables):
  student, teacher = tables

  def sequence_kl(places):
    def value(x):
      log_p, log_q = _log_probs(x)[:, :places].sum(axis=1), _log_probs(teacher)[:, :places].sum(axis=1)
      return jnp.sum(jnp.exp(log_p) * (log_p - log_q)) / V ** (T - places)  # each prefix stands for all that follows

    return jax.jit(jax.grad(value))(student)

  at_places = lambda places: _expected(lambda x: _place_kls(x, teacher, places), student)
  np.testing.assert_allclose(at_places(1), sequence_kl(1), atol=1e-5)
  assert np.abs(at_places(T) - sequence_kl(T)).max() > 0.05


def test_the_reward_and_the_distillation_add_up_in_the_advantage():
  # A = 1 for the completion; log-ratios 2 and -30 (clipped to -10), β = 0.5: 1 - 1 and 1 + 5.
  log_ratio = jnp.array([[2.0, -30.0]])
  advantages = lambda x: distilled_advantages(jnp.array([1.0]), x, 0.5, 10.0)
  np.testing.assert_allclose(advantages(log_ratio), [[0.0, 6.0]])
  assert not jax.grad(lambda x: advantages(x).sum())(log_ratio).any()


# What is not offered.


def test_k1_has_no_gradient_and_k3_that_of_the_forward_kl(tables):
  student, teacher = tables
  d = lambda x: _log_probs(teacher) - _log_probs(x)
  np.testing.assert_allclose(_expected(lambda x: -d(x).sum(axis=1), student), 0, atol=1e-5)
  k3 = _expected(lambda x: (jnp.exp(d(x)) - d(x) - 1).sum(axis=1), student)
  forward = _expected(lambda x: _kl(jax.nn.softmax(teacher), jax.nn.softmax(x))[_ROWS].sum(axis=1), student)
  np.testing.assert_allclose(k3, forward, atol=1e-4)
  assert np.abs(k3 - _expected(lambda x: _place_kls(x, teacher, T), student)).max() > 0.05


@pytest.mark.parametrize(
  ("bad", "message"),
  [
    ({"kl": "k1"}, "kl: 'k1' is not offered: .*a gradient of 0 in expectation; use exact or top_k or per_token"),
    ({"kl": "k3"}, r"kl: 'k3' is not offered: .*the gradient of the forward KL\(teacher \|\| student\); use exact or"),
    ({"kl": "forward"}, "kl: 'forward' is not offered; use exact or top_k or per_token, whose gradient is the reverse KL's"),
    ({"top_k": 0}, "top_k: 0 must be at least 1"),
    ({"beta": -0.1}, "^beta: "),
    ({"beta_end": float("nan")}, "^beta_end: "),
    ({"clip": 0.0}, "clip: 0.0 must be above 0"),
  ],
)
def test_settings_that_cannot_hold_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    DistillationConfig(**bad)


def test_beta_falls_linearly_from_the_first_step_to_the_last():
  config = DistillationConfig(beta=0.5, beta_end=0.1)
  np.testing.assert_allclose([beta_at(config, step, 5) for step in range(5)], [0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-6)
  np.testing.assert_allclose(beta_at(config, jnp.int32(0), 1), 0.5)
