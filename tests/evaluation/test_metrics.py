"""Metrics of slates: agreement with rax, invalid answers, long slates in blocks."""

import jax.numpy as jnp
import numpy as np
import pytest
import rax

from gr2_jax.evaluation import metrics
from gr2_jax.evaluation.metrics import METRICS, compute_metrics


@pytest.mark.parametrize("gain", ["exponential", "linear"])
def test_agree_with_rax(gain):
  rng = np.random.default_rng(0)
  n, k = 40, 12
  sizes = rng.integers(2, k + 1, n)
  padding = np.arange(k) >= sizes[:, None]
  labels = np.where(padding, -1, rng.integers(0, 3, (n, k)))
  rankings = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)
  ours = compute_metrics(rankings, labels, gain)
  scores, gain_fn = -np.argsort(rankings, axis=1).astype(np.float32), (lambda x: 2.0**x - 1) if gain == "exponential" else (lambda x: x)
  arguments = (jnp.asarray(scores), jnp.asarray(np.maximum(labels, 0), jnp.float32))
  for name in set(METRICS) - {"auc"}:
    kind, _, cutoff = name.partition("@")
    options = {"topn": int(cutoff)} if cutoff else {}
    options |= {"gain_fn": gain_fn} if kind == "ndcg" else {}
    expected = getattr(rax, f"{kind}_metric")(*arguments, where=jnp.asarray(~padding), reduce_fn=None, **options)
    np.testing.assert_allclose(ours[name], expected, atol=1e-6, err_msg=name)


def test_auc_of_a_hand_made_slate():
  # Positives 0 and 2 in the order 0 1 2 3: pairs with 1 and 3: 0<1, 0<3, 2<3 right, 2<1 wrong.
  assert compute_metrics(np.array([[0, 1, 2, 3]]), np.array([[1, 0, 1, 0]]))["auc"][0] == 0.75


def test_an_invalid_answer_scores_nothing():
  of = compute_metrics(np.array([[0, 1], [-1, -1]]), np.array([[1, 0], [1, 0]]))
  assert all(of[name].tolist() == [1.0, 0.0] for name in METRICS)


def test_blocks_change_nothing(monkeypatch):
  rng = np.random.default_rng(1)
  rankings = rng.permuted(np.tile(np.arange(6), (11, 1)), axis=1)
  labels = rng.integers(0, 3, (11, 6))
  whole = compute_metrics(rankings, labels)
  monkeypatch.setattr(metrics, "_BLOCK", 4 * 36)  # four slates of six at a time
  for name, values in compute_metrics(rankings, labels).items():
    np.testing.assert_array_equal(values, whole[name])


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="must both be"):
    compute_metrics(np.zeros((2, 3), int), np.zeros((2, 4), int))
  with pytest.raises(ValueError, match="no slate"):
    compute_metrics(np.zeros((0, 3), int), np.zeros((0, 3), int))
  with pytest.raises(ValueError, match="NaN"):
    compute_metrics(np.array([[0, 1]]), np.array([[np.nan, 1]]))
