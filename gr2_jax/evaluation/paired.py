"""Paired bootstrap: how sure a difference between two rankers on the same slates is."""

from typing import NamedTuple

import numpy as np

from gr2_jax.evaluation.weights import check_weights, weighted_mean

RESAMPLES = 10_000
_BLOCK = 1 << 23  # drawn indices held at once


class Paired(NamedTuple):
  """What a metric differs by; each `[M]`, one for each column of the values.

  `relative` is delta / baseline mean; it and its interval are NaN where the baseline's mean is 0, or is 0 in too many resamples.
  """

  delta: np.ndarray
  delta_low: np.ndarray
  delta_high: np.ndarray
  relative: np.ndarray
  relative_low: np.ndarray
  relative_high: np.ndarray
  p: np.ndarray  # two-sided


def _totals_by_cluster(x: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
  totals = np.zeros((count, x.shape[1]))
  np.add.at(totals, codes, x)
  return totals


def _resample_means(totals: np.ndarray, weights: np.ndarray, seed: int, resamples: int) -> np.ndarray:
  """Means `[resamples, M]` when clusters of these weighted sums `[C, M]` and weights `[C]` are drawn with replacement."""
  rng = np.random.default_rng(seed)
  n = len(weights)
  means = []
  rows = max(_BLOCK // n, 1)
  for start in range(0, resamples, rows):
    count = min(rows, resamples - start)
    drawn = rng.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
    times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
    means.append(times @ totals / (times @ weights)[:, None])
  return np.concatenate(means)


def _resample(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray | None, seed: int, resamples: int) -> np.ndarray:
  """Means `[resamples, M]` of values `[n, M]` weighted by `[n]`, clusters drawn whole; raises ValueError for fewer than two of them."""
  codes = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
  if len(codes) != len(values):
    raise ValueError(f"clusters: {len(codes)} names for {len(values)} slates; give one for each")
  count = int(codes.max()) + 1 if len(codes) else 0
  if count < 2:
    raise ValueError(f"values: {len(values)} slates in {count} clusters; a bootstrap needs at least two")
  return _resample_means(_totals_by_cluster(values * weights[:, None], codes, count), np.bincount(codes, weights), seed, resamples)


def _interval(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
  tail = (1 - level) / 2
  with np.errstate(invalid="ignore"):
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
  finite = np.isfinite(low) & np.isfinite(high)
  return np.where(finite, low, np.nan), np.where(finite, high, np.nan)


def paired_bootstrap(
  values: np.ndarray,
  baseline: np.ndarray,
  *,
  seed: int,
  resamples: int = RESAMPLES,
  clusters: np.ndarray | None = None,
  weights: np.ndarray | None = None,
  level: float = 0.95,
) -> Paired:
  """Percentile intervals of `mean(values) - mean(baseline)` and of its ratio to the baseline's mean, over resampled slates.

  values, baseline `[n]` or `[n, M]`: metrics of the same n slates; all M columns share the resamples. `clusters [n]`: names of
  which all slates are drawn together (the users, when one has several slates). `weights [n]`: how much each slate counts, in the means
  of all slates and in those of each resample (default: alike). p is twice the smaller share of resampled
  differences on either side of 0, a difference of exactly 0 counting for both, so it is at least 2 / (resamples + 1).
  Raises ValueError for shapes that differ, fewer than two slates, values that are not finite, or weights that are not above 0.
  """
  values, baseline = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (values, baseline))
  if values.shape != baseline.shape:
    raise ValueError(f"values {values.shape} and baseline {baseline.shape} must be of the same slates")
  if not (np.isfinite(values).all() and np.isfinite(baseline).all()):
    raise ValueError("values: hold a NaN or infinity; a metric must be defined for every slate")
  columns = values.shape[1]
  weights = check_weights(weights, len(values))
  differences = values - baseline
  delta, base = weighted_mean(differences, weights), weighted_mean(baseline, weights)
  means = _resample(np.concatenate([differences, baseline], axis=1), weights, clusters, seed, resamples)
  deltas, bases = means[:, :columns], means[:, columns:]
  # Sums in another order may leave 1e-17 where all differences cancel; that is no evidence.
  deltas = np.where(np.abs(deltas) < 1e-12, 0.0, deltas)
  with np.errstate(divide="ignore", invalid="ignore"):
    lifts = np.where(deltas == 0, 0.0, deltas / bases)
    relative = delta / base
  below, above = (deltas <= 0).sum(axis=0), (deltas >= 0).sum(axis=0)
  undefined = base == 0
  low, high = _interval(deltas, level)
  relative_low, relative_high = _interval(lifts, level)
  return Paired(
    delta=delta,
    delta_low=low,
    delta_high=high,
    relative=np.where(undefined, np.nan, relative),
    relative_low=np.where(undefined, np.nan, relative_low),
    relative_high=np.where(undefined, np.nan, relative_high),
    p=np.minimum(2 * (np.minimum(below, above) + 1) / (resamples + 1), 1.0),
  )


def paired_means(values: np.ndarray, baseline: np.ndarray, weights: np.ndarray | None = None) -> Paired:
  """What metrics `[n, M]` of the same n slates differ by, where one user leaves nothing to resample: intervals and p are NaN."""
  weights = check_weights(weights, len(values))
  base = weighted_mean(baseline, weights)
  delta = weighted_mean(values - baseline, weights)
  unknown = np.full(len(delta), np.nan)
  relative = np.divide(delta, base, out=unknown.copy(), where=base != 0)
  return Paired(delta, unknown, unknown, relative, unknown, unknown, unknown)


class Share(NamedTuple):
  """A share of a gain, each `[M]`; all NaN where the gain may be none."""

  share: np.ndarray
  low: np.ndarray
  high: np.ndarray


def share_of_gain(
  student: np.ndarray,
  teacher: np.ndarray,
  baseline: np.ndarray,
  *,
  seed: int,
  resamples: int = RESAMPLES,
  clusters: np.ndarray | None = None,
  weights: np.ndarray | None = None,
  level: float = 0.95,
) -> Share:
  """(mean(student) - mean(baseline)) / (mean(teacher) - mean(baseline)) of metrics `[n, M]` of the same n slates, with its interval.

  Resampled as in `paired_bootstrap`. Where the teacher's gain is not positive beyond its own interval, a share of it says nothing and is
  NaN; in the few resamples without a gain that remain it does not count.
  """
  gains = np.concatenate([student - baseline, teacher - baseline], axis=1).astype(np.float64)
  columns = gains.shape[1] // 2
  weights = check_weights(weights, len(gains))
  means = _resample(gains, weights, clusters, seed, resamples)
  of_student, of_teacher = means[:, :columns], means[:, columns:]
  tail = (1 - level) / 2
  known = np.quantile(of_teacher, tail, axis=0) > 0
  with np.errstate(divide="ignore", invalid="ignore"):
    shares = np.where(known & (of_teacher > 0), of_student / of_teacher, np.nan)
    share = np.where(known, weighted_mean(gains[:, :columns], weights) / weighted_mean(gains[:, columns:], weights), np.nan)
  bounds = np.full((2, columns), np.nan)
  if known.any():
    bounds[:, known] = np.nanquantile(shares[:, known], [tail, 1 - tail], axis=0)
  return Share(share, *bounds)
