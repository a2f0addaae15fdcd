import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.rollout.sampling import Sampling, draw_uniforms, sample_tokens


def _draws(logits, sampling, rows=4000):
  uniform = draw_uniforms(jax.random.key(0), jnp.arange(rows), 1)[:, 0]
  return jax.jit(sample_tokens)(jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1)), uniform, sampling)


def test_frequencies_follow_the_softmax():
  probs = np.array([0.5, 0.25, 0.15, 0.1])
  sample = _draws(np.log(probs) + 7, Sampling.create())
  frequency = np.bincount(sample.tokens, minlength=4) / 4000
  np.testing.assert_allclose(frequency, probs, atol=4 * np.sqrt(0.25 / 4000))
  np.testing.assert_allclose(sample.log_probs, np.log(probs)[sample.tokens], atol=1e-5)
  np.testing.assert_allclose(sample.entropy, -(probs * np.log(probs)).sum(), rtol=1e-5)


def test_frequencies_over_several_blocks():
  # 300 tokens are three blocks of 128: the mass of each block must be drawn in its share, and -inf never.
  logits = np.where(np.arange(300) % 3 == 0, 0.0, -np.inf)
  tokens = np.asarray(_draws(logits, Sampling.create()).tokens)
  assert (tokens % 3 == 0).all() and tokens.max() < 300
  shares = np.bincount(tokens // 128, minlength=3) / 4000
  np.testing.assert_allclose(shares, [0.43, 0.42, 0.15], atol=4 * np.sqrt(0.25 / 4000))


def test_temperature_divides_the_logits():
  # Temperature 2 turns odds of 4 into 2: probabilities 2/3 and 1/3.
  sample = _draws([np.log(4.0), 0.0], Sampling.create(temperature=2.0))
  np.testing.assert_allclose(np.exp(sample.log_probs), np.where(sample.tokens == 0, 2 / 3, 1 / 3), rtol=1e-5)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [0]), (0.5, [0]), (0.51, [0, 1]), (0.76, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])])
def test_top_p_is_normalised_over_its_support(top_p, kept):
  # Probabilities 1/2, 1/4, 1/8, 1/8 (exact in float32): the last two are tied, so beyond 3/4 both are kept.
  probs = np.array([0.5, 0.25, 0.125, 0.125])
  sample = _draws(np.log2(probs) * np.log(2), Sampling.create(top_p=top_p))
  assert sorted(set(sample.tokens.tolist())) == kept
  np.testing.assert_allclose(np.exp(sample.log_probs), (probs / probs[kept].sum())[sample.tokens], rtol=1e-5)


def test_temperature_zero_is_a_point_mass_on_the_first_largest_logit():
  sample = _draws([0.0, 3.0, 3.0, -1.0], Sampling.create(temperature=0.0), rows=8)
  assert set(sample.tokens.tolist()) == {1}
  np.testing.assert_array_equal(sample.log_probs, np.zeros(8))
  np.testing.assert_array_equal(sample.entropy, np.zeros(8))


def test_uniforms_depend_on_row_and_place_alone():
  key = jax.random.key(2)
  whole = draw_uniforms(key, jnp.arange(6), 5)
  np.testing.assert_array_equal(draw_uniforms(key, jnp.array([4, 3, 2]), 3), whole[4:1:-1, :3])
  expected = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 4), 2))
  assert whole[4, 2] == expected
  assert len(np.unique(whole)) == whole.size and (whole >= 0).all() and (whole < 1).all()


def test_a_draw_is_independent_of_its_batch():
  logits = jax.random.normal(jax.random.key(1), (6, 257))
  uniform = draw_uniforms(jax.random.key(2), jnp.arange(6), 1)[:, 0]
  sampling = Sampling.create(temperature=0.9, top_p=0.95)
  whole = sample_tokens(logits, uniform, sampling)
  part = sample_tokens(logits[4:1:-1], uniform[4:1:-1], sampling)
  np.testing.assert_array_equal(part.tokens, whole.tokens[4:1:-1])
  np.testing.assert_allclose(part.log_probs, whole.log_probs[4:1:-1], atol=1e-6)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
  # The first and the last of 300 tokens have no mass: the first draw must be token 1, the last token 298.
  logits = jnp.where((jnp.arange(300) == 0) | (jnp.arange(300) == 299), -jnp.inf, 0.0)[None]
  token = sample_tokens(logits, jnp.array([uniform]), Sampling.create()).tokens[0]
  assert token == (1 if uniform == 0 else 298)


def test_changing_the_knobs_compiles_nothing():
  traces = []

  @jax.jit
  def draw(logits, uniform, sampling):
    traces.append(1)
    return sample_tokens(logits, uniform, sampling).tokens

  for temperature, top_p in [(1.0, 1.0), (0.5, 0.9), (0.0, 1.0)]:
    draw(jnp.zeros((2, 5)), jnp.full(2, 0.5), Sampling.create(temperature, top_p))
  assert len(traces) == 1


@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_knobs_out_of_range_are_refused(temperature, top_p):
  with pytest.raises(ValueError, match="must"):
    Sampling.create(temperature, top_p)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_show_in_the_log_probability(wrong, temperature):
  logits = jnp.array([[0.0, 1.0, 2.0], [0.0, wrong, 2.0], [OUT_OF_REACH, 1.0, OUT_OF_REACH]])
  log_probs = sample_tokens(logits, jnp.full(3, 0.5), Sampling.create(temperature)).log_probs
  assert np.isfinite(log_probs).tolist() == [True, False, True]
