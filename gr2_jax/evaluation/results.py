"""`results.json`: every ranker's metrics, their paired differences to the upstream order, and what its answers look like."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gr2_jax.errors import UserError
from gr2_jax.evaluation.diagnostics import compute_diagnostics, permutation_consistency
from gr2_jax.evaluation.metrics import METRICS, compute_metrics
from gr2_jax.evaluation.paired import RESAMPLES, paired_bootstrap, paired_means
from gr2_jax.evaluation.reasons import CheckedReason
from gr2_jax.evaluation.weights import check_weights, weighted_mean
from gr2_jax.files import write_json

BASELINE = "upstream"
TREES = ("lambdamart", "lambdamart_all")  # on the basic facts, and on all that scored policies read
CEILING = "bayes"  # a synthetic market's Bayes order: in expectation no ranker is above it
POLICY = "policy"  # the policy after reinforcement learning, on full histories
AVERAGED = "_averaged"  # behind a policy's name: its order by the mean log-probability over several orders shown
COMPRESSED = "policy_compressed_"  # with the name of a compressor: the same policy on compressed ones
REQUIRED_RANKERS = ("upstream", "random", "oracle", "popularity", "lambdamart", POLICY)
_KEYS = {
  **{"dataset": str, "seeds": list, "n": int, "orders": dict, "paired": dict, "diagnostics": dict, "cost": dict},
  **{"presentations": dict, "segments": dict, "subsets": dict, "upstream_rank_histogram": dict, "slate_size": dict},
  **{"gain": str, "bootstrap": dict, "notes": list},
}


class ResultsError(UserError, ValueError):
  """A results file that cannot be read as one; the message names the file and the key."""


@dataclasses.dataclass(frozen=True)
class Answers:
  """Rankings `[n, K]` (-1 where invalid) of all slates in one presentation, the orders they were shown in, and error kinds.

  `shown [n, K]` defaults to the upstream order; `errors` holds one kind or None for each slate where answers were parsed.
  """

  rankings: np.ndarray
  shown: np.ndarray | None = None
  errors: Sequence[str | None] | None = None


@dataclasses.dataclass(frozen=True)
class RankerAnswers:
  """What one ranker answered, by presentation (`upstream`, `shuffled`, ...; the main tables show the first), and its cost per slate.

  `cost`: `prompt_tokens`, `completion_tokens`, `ms_per_slate`, all means; the last is of the minutes in which this ranker was asked, so
  those of two rankers are comparable only on a machine that did nothing else. `reasons`: what its reasonings say of all slates in the
  first presentation, where it reasons.
  """

  answers: Mapping[str, Answers]
  cost: Mapping[str, float] | None = None
  reasons: Sequence[CheckedReason] = ()

  @classmethod
  def of(cls, rankings: np.ndarray) -> "RankerAnswers":
    """A ranker that does not see in which order candidates are shown."""
    return cls({"upstream": Answers(rankings)})


def mean_metrics(metrics: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, float]:
  """Means of metrics `[n]` over slates that count by weights `[n]`."""
  return {name: float(weighted_mean(values, weights)) for name, values in metrics.items()}


def compare_rankers(
  metrics: Mapping[str, Mapping[str, np.ndarray]],
  pairs: Sequence[tuple[str, str]],
  clusters: np.ndarray,
  *,
  seed: int,
  resamples: int,
  weights: np.ndarray | None = None,
) -> dict[str, Any]:
  """`{"NAME_vs_BASE": {METRIC: paired difference}}` of all (NAME, BASE) pairs, from one set of resamples, in the metrics that all have.

  `metrics`: NAME -> METRIC -> values `[n]` of the same n slates. `clusters [n]`: names of what is drawn together. `weights [n]`: how
  much each slate counts (default: alike). With one cluster there is nothing to resample: `delta_ci95`, `ci95` and `p` are null.
  """
  if not pairs:
    return {}
  shared = [name for name in next(iter(metrics.values())) if all(name in of for of in metrics.values())]
  names, bases = (np.stack([metrics[pair[side]][m] for pair in pairs for m in shared], axis=1) for side in (0, 1))
  if len(set(clusters)) < 2:
    of = paired_means(names, bases, weights)
  else:
    of = paired_bootstrap(names, bases, seed=seed, resamples=resamples, clusters=clusters, weights=weights)

  def number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None

  def interval(low: float, high: float) -> list[float] | None:
    return [float(low), float(high)] if math.isfinite(low) and math.isfinite(high) else None

  compared: dict[str, Any] = {}
  for column, (pair, metric) in enumerate((pair, m) for pair in pairs for m in shared):
    compared.setdefault(f"{pair[0]}_vs_{pair[1]}", {})[metric] = {
      "delta": number(of.delta[column]),
      "delta_ci95": interval(of.delta_low[column], of.delta_high[column]),
      "relative": number(of.relative[column]),
      "ci95": interval(of.relative_low[column], of.relative_high[column]),
      "p": number(of.p[column]),
    }
  return compared


def rank_histogram(labels: np.ndarray) -> list[int]:
  """How many slates have their target (the first of the best label) at each upstream rank, from labels `[n, K]` (-1 at padding)."""
  labels = np.asarray(labels)
  target = labels.argmax(axis=1)[labels.max(axis=1) > 0]
  counts: list[int] = np.bincount(target, minlength=labels.shape[1]).tolist()
  return counts


# NAME -> presentation -> METRIC -> values [n] of the same n slates.
Measured = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]


def measure_rankers(
  rankers: Mapping[str, RankerAnswers], labels: np.ndarray, gain: Literal["exponential", "linear"] = "exponential"
) -> Measured:
  """METRICS of every slate, in all presentations of all rankers; labels `[n, K]` in the upstream order (-1 at padding)."""
  return {
    name: {shown: compute_metrics(answers.rankings, labels, gain) for shown, answers in ranker.answers.items()}
    for name, ranker in rankers.items()
  }


def build_results(
  *,
  dataset: str,
  seeds: Sequence[int],
  labels: np.ndarray,
  rankers: Mapping[str, RankerAnswers],
  titles: Mapping[str, str] | None = None,
  pairs: Sequence[tuple[str, str]] = (),
  priors: Sequence[str] = (),
  users: Sequence[str] | None = None,
  segments: Sequence[str | None] | None = None,
  subsets: Mapping[str, np.ndarray] | None = None,
  buckets: Mapping[str, Mapping[str, np.ndarray]] | None = None,
  weights: np.ndarray | None = None,
  train_labels: np.ndarray | None = None,
  notes: Sequence[str] = (),
  gain: Literal["exponential", "linear"] = "exponential",
  metrics: Measured | None = None,
  bootstrap_seed: int = 0,
  resamples: int = RESAMPLES,
) -> dict[str, Any]:
  """The content of results.json for n test slates with labels `[n, K]` in the upstream order (-1 at padding).

  `rankers`: NAME -> RankerAnswers, among them `upstream`. `titles`: NAME -> what a reader sees, of the rankers that are no classical
  ones, in the order in which tables list them. `pairs`: (NAME, BASE) that are compared besides every NAME with `upstream`, where both
  are there. `priors`: the policies from which another may have been trained on, the latest stage first.

  `users [n]`: slates of one user are resampled together. `segments [n]`: tables of their own for each name, as for `subsets`, NAME ->
  `[n]` bool, which may overlap and are left out where empty. `buckets`: the same by dimension, see `segments.bucket_slates`,
  where the rankers of `titles` alone are compared, with the upstream order and the trees.
  `weights [n]`: how much each slate counts in every mean (default: alike); counts of slates do not heed them. `train_labels [m, K]`: for
  the histogram of the target's upstream rank. `notes`: sentences for the card, such as how features treat time. `metrics`: what
  `measure_rankers` made of the rankers, where it is at hand.

  In `paired`, `ci95` is the interval of `relative`, both null where the baseline's mean is 0, and `delta_ci95` that of `delta`; slates of
  one user leave both intervals and p null. Raises ValueError for rankers without `upstream` or of other slates, and for weights that are
  not above 0.
  """
  labels = np.asarray(labels)
  if BASELINE not in rankers:
    raise ValueError(f"rankers: {sorted(rankers)} lack {BASELINE!r}, against which all are compared")
  for name, ranker in rankers.items():
    for presentation, answers in ranker.answers.items():
      if np.shape(answers.rankings) != labels.shape:
        raise ValueError(f"rankers: {name} ({presentation}) has rankings {np.shape(answers.rankings)} for labels {labels.shape}")
  clusters = np.arange(len(labels)).astype(str) if users is None else np.asarray(users)
  segment_of = np.full(len(labels), None) if segments is None else np.asarray(segments, object)
  weights = check_weights(weights, len(labels))
  metrics = measure_rankers(rankers, labels, gain) if metrics is None else metrics
  main = {name: next(iter(by_presentation.values())) for name, by_presentation in metrics.items()}
  compared = [(name, BASELINE) for name in rankers if name != BASELINE]
  compared += [(name, base) for name, base in pairs if name in rankers and base in rankers]

  # A run has a dozen buckets, in which only policies are compared: all pairs would take minutes and megabytes.
  told = [(name, base) for name, base in compared if name in (titles or {}) and base in (BASELINE, *TREES)]

  def table(where: np.ndarray, compared: Sequence[tuple[str, str]] = compared) -> dict[str, Any]:
    of_table = {name: {metric: values[where] for metric, values in of.items()} for name, of in main.items()}
    return {
      "n": int(where.sum()),
      "orders": {name: mean_metrics(of, weights[where]) for name, of in of_table.items()},
      "paired": compare_rankers(of_table, compared, clusters[where], seed=bootstrap_seed, resamples=resamples, weights=weights[where]),
    }

  def tables(of: Mapping[str, np.ndarray], compared: Sequence[tuple[str, str]] = compared) -> dict[str, Any]:
    return {name: table(np.asarray(where, bool), compared) for name, where in of.items() if np.any(where)}

  return {
    "dataset": dataset,
    "seeds": [int(seed) for seed in seeds],
    "titles": dict(titles or {}),
    "priors": [name for name in priors if name in rankers],
    **table(np.ones(len(labels), bool)),
    "diagnostics": {name: _diagnose(ranker, labels, weights) for name, ranker in rankers.items()},
    "cost": {name: dict(ranker.cost) for name, ranker in rankers.items() if ranker.cost is not None},
    "presentations": {
      name: {shown: mean_metrics(of, weights) for shown, of in by_presentation.items()}
      for name, by_presentation in metrics.items()
      if len(by_presentation) > 1
    },
    "segments": {str(s): table(segment_of == s) for s in sorted({s for s in segment_of if s is not None})},
    "subsets": tables(subsets or {}),
    "buckets": {dimension: tables(of, told) for dimension, of in (buckets or {}).items()},
    "upstream_rank_histogram": {"test": rank_histogram(labels)} | ({} if train_labels is None else {"train": rank_histogram(train_labels)}),
    "slate_size": {"mean": float((labels >= 0).sum(axis=1).mean()), "max": labels.shape[1]},
    "gain": gain,
    "bootstrap": {"resamples": resamples, "seed": bootstrap_seed, "clusters": len(set(clusters))},
    "notes": list(notes),
  }


def _diagnose(ranker: RankerAnswers, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
  """Diagnostics of the first presentation, with those of the others under their names; consistency over all pairs of them."""
  by_presentation = {name: compute_diagnostics(of.rankings, labels, of.shown, of.errors, weights) for name, of in ranker.answers.items()}
  (_, diagnostics), *others = by_presentation.items()
  pairs = itertools.combinations([of.rankings for of in ranker.answers.values()], 2)
  agreement = [tau for one, two in pairs if (tau := permutation_consistency(one, two, labels, weights)) is not None]
  consistency = sum(agreement) / len(agreement) if agreement else None
  return {**diagnostics, "permutation_consistency": consistency, **dict(others)}


def check_results(results: Any, where: str) -> None:
  """Raises ResultsError unless `results` has the format of results.json; `where` names it in the message."""
  if not isinstance(results, Mapping):
    raise ResultsError(f"{where}: holds no JSON object; make it again with the evaluation stage")
  for key, kind in _KEYS.items():
    if not isinstance(results.get(key), kind):
      raise ResultsError(f"{where}: {key} is missing or no {kind.__name__}; make the file again with the evaluation stage")
  if BASELINE not in results["orders"]:
    raise ResultsError(f"{where}: orders lack {BASELINE!r}; every table is against it")
  for name, metrics in results["orders"].items():
    missing = [m for m in METRICS if not isinstance(metrics.get(m), int | float)]
    if missing:
      raise ResultsError(f"{where}: orders.{name} lacks {', '.join(missing)}")


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
  """Writes results.json, whole or not at all; raises ResultsError for a wrong format or a NaN."""
  check_results(results, "results")
  try:
    write_json(path, results)
  except ValueError as error:
    raise ResultsError(f"results: {error}; an undefined value must be null") from None


def load_results(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads and checks results.json; raises ResultsError that names the file and what is wrong with it."""
  path = pathlib.Path(path)
  if not path.exists():
    raise ResultsError(f"{path}: there is no such file; run the evaluation stage first")
  try:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ResultsError(f"{path}: is not JSON ({error}); make it again with the evaluation stage") from None
  check_results(results, str(path))
  return results
