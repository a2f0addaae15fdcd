"""Metrics add up exactly, and an empty one does no harm."""

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.training.metric import Metric, merge


def test_mean_over_unequal_microbatches_is_the_mean_over_all():
  # Means of [1, 2, 3] and [10] are 2 and 10; their mean is 6, but the mean of all four values is 16 / 4 = 4.
  parts = [{"loss": Metric.of(jnp.array([1.0, 2.0, 3.0]))}, {"loss": Metric.of(jnp.array([10.0]))}]
  assert float(merge(parts)["loss"].mean()) == 4.0


def test_merge_counts_a_name_only_where_it_is_present():
  merged = merge([{"a": Metric(1.0, 1.0)}, {"a": Metric(5.0, 1.0), "b": Metric(3.0, 2.0)}])
  assert float(merged["a"].mean()) == 3.0
  assert float(merged["b"].mean()) == 1.5


def test_weights_and_masked_nan():
  # 2 * 0.5 + 4 * 1 = 5 over a weight of 1.5; the NaN is under weight 0.
  metric = Metric.of(jnp.array([2.0, 4.0, jnp.nan]), where=jnp.array([0.5, 1.0, 0.0]))
  np.testing.assert_allclose(metric.mean(), 5 / 1.5, rtol=1e-6)


def test_nothing_counted_gives_zero_and_a_zero_gradient():
  def mean(x):
    return Metric.of(x, where=jnp.zeros(3)).mean()

  value, gradient = jax.value_and_grad(mean)(jnp.ones(3))
  assert float(value) == 0.0
  np.testing.assert_array_equal(gradient, np.zeros(3))


def test_is_a_pytree_that_a_scan_can_stack_and_a_sum_reduce():
  _, stacked = jax.lax.scan(lambda c, x: (c, Metric.of(x)), 0, jnp.arange(6.0).reshape(3, 2))
  total = jax.tree.map(lambda x: x.sum(0), stacked)
  assert float(total.mean()) == 2.5
