"""Paired bootstrap: against scipy, against simulation, clusters, and values that leave it undefined."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from gr2_jax.evaluation.paired import paired_bootstrap, share_of_gain


def test_agrees_with_scipy():
  rng = np.random.default_rng(0)
  baseline = rng.random(60)
  values = baseline + rng.normal(0.1, 0.3, 60)
  ours = paired_bootstrap(values, baseline, seed=1)
  options = {"n_resamples": 10_000, "method": "percentile", "paired": True, "vectorized": True}
  for statistic, low, high in (
    (lambda a, b, axis: (a - b).mean(axis), ours.delta_low, ours.delta_high),
    (lambda a, b, axis: (a - b).mean(axis) / b.mean(axis), ours.relative_low, ours.relative_high),
  ):
    theirs = bootstrap((values, baseline), statistic, rng=np.random.default_rng(2), **options).confidence_interval
    # Two independent sets of 10,000 resamples: the ends agree to a few percent of the width.
    np.testing.assert_allclose([low[0], high[0]], theirs, atol=0.05 * (theirs.high - theirs.low))
  np.testing.assert_allclose(ours.delta[0], (values - baseline).mean())
  np.testing.assert_allclose(ours.relative[0], values.mean() / baseline.mean() - 1)


def test_covers_the_truth_as_often_as_it_says():
  # 300 experiments of 80 slates whose true difference is 0.1: a 95 % interval misses about 15 (sd 4); p < 0.05 in the same.
  rng = np.random.default_rng(3)
  inside = null_rejected = 0
  for trial in range(300):
    baseline = (rng.random(80) < 0.4).astype(float)
    shift = rng.normal(0.1, 0.5, 80)
    of = paired_bootstrap(np.stack([baseline + shift, baseline + shift - 0.1], 1), np.stack([baseline] * 2, 1), seed=trial, resamples=400)
    inside += of.delta_low[0] <= 0.1 <= of.delta_high[0]
    null_rejected += of.p[1] < 0.05
  assert 270 <= inside <= 297
  assert 3 <= null_rejected <= 30


def test_p_agrees_with_the_interval():
  clear = paired_bootstrap(np.ones(50), np.r_[np.zeros(25), np.ones(25)], seed=0, resamples=999)
  # No resample of 50 will draw the 25 ties alone: p is the least there is, 2 / 1000.
  assert clear.delta_low[0] > 0 and clear.p[0] == 0.002
  same = paired_bootstrap(np.ones(50), np.ones(50), seed=0, resamples=999)
  assert same.delta[0] == same.delta_low[0] == same.delta_high[0] == 0 and same.p[0] == 1


def test_columns_share_the_resamples_and_seeds_repeat():
  rng = np.random.default_rng(4)
  values, baseline = rng.random((30, 3)), rng.random((30, 3))
  together = paired_bootstrap(values, baseline, seed=5, resamples=500)
  alone = paired_bootstrap(values[:, 1], baseline[:, 1], seed=5, resamples=500)
  np.testing.assert_allclose([x[1] for x in together], [x[0] for x in alone], atol=1e-12)


def test_clusters_widen_the_interval():
  # Ten users with 20 equal slates each are ten observations, not 200: sqrt(20) = 4.5 times the width.
  difference = np.repeat(np.random.default_rng(6).normal(0, 1, 10), 20)
  users = np.repeat([f"u{i}" for i in range(10)], 20)
  plain = paired_bootstrap(difference, np.zeros(200), seed=0, resamples=2000)
  clustered = paired_bootstrap(difference, np.zeros(200), seed=0, resamples=2000, clusters=users)
  ratio = (clustered.delta_high - clustered.delta_low) / (plain.delta_high - plain.delta_low)
  assert 3.5 < ratio[0] < 5.5 and clustered.delta[0] == plain.delta[0]


def test_a_weight_of_2_is_a_slate_that_is_drawn_twice_with_its_user():
  rng = np.random.default_rng(8)
  student, teacher, baseline = rng.random((3, 40, 2)) + np.array([0.5, 1.0, 0.0])[:, None, None]
  users = np.array([f"u{i % 15}" for i in range(40)])
  weights = rng.integers(1, 4, 40)
  times = np.repeat(np.arange(40), weights)
  options = {"seed": 0, "resamples": 300}
  weighted = paired_bootstrap(student, baseline, clusters=users, weights=weights, **options)
  repeated = paired_bootstrap(student[times], baseline[times], clusters=users[times], **options)
  np.testing.assert_allclose(weighted, repeated, rtol=1e-12)
  weighted = share_of_gain(student, teacher, baseline, clusters=users, weights=weights, **options)
  repeated = share_of_gain(student[times], teacher[times], baseline[times], clusters=users[times], **options)
  np.testing.assert_allclose(weighted, repeated, rtol=1e-12)


def test_a_baseline_of_nothing_has_no_relative_lift():
  of = paired_bootstrap(np.r_[np.ones(5), np.zeros(5)], np.zeros(10), seed=0, resamples=200)
  assert of.delta[0] == 0.5 and np.isnan([of.relative[0], of.relative_low[0], of.relative_high[0]]).all()


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="at least two"):
    paired_bootstrap(np.ones(1), np.ones(1), seed=0)
  with pytest.raises(ValueError, match="at least two"):
    paired_bootstrap(np.ones(3), np.ones(3), seed=0, clusters=np.array(["a"] * 3))
  with pytest.raises(ValueError, match="same slates"):
    paired_bootstrap(np.ones(3), np.ones(4), seed=0)
  with pytest.raises(ValueError, match="NaN"):
    paired_bootstrap(np.array([1.0, np.nan]), np.ones(2), seed=0)
