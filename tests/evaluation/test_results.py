"""results.json: its format, its numbers, and what shuffled labels do to it."""

import json

import numpy as np
import pytest

from gr2_jax.evaluation.results import (
  Answers,
  RankerAnswers,
  ResultsError,
  build_results,
  load_results,
  measure_rankers,
  rank_histogram,
  write_results,
)


def make_rankers(labels, seed=0, skill=2.0):
  """Upstream, random, oracle, and a policy that sees the labels through noise, in both presentations."""
  rng = np.random.default_rng(seed)
  n, k = labels.shape
  natural = np.tile(np.arange(k), (n, 1))
  shuffled = rng.permuted(natural, axis=1)

  def by(scores):
    return np.argsort(-scores, axis=1, kind="stable")

  answers = {
    "upstream": Answers(by(skill * labels + rng.normal(size=(n, k))), natural, [None] * n),
    "shuffled": Answers(by(skill * labels + rng.normal(size=(n, k))), shuffled, [None] * n),
  }
  return {
    "upstream": RankerAnswers.of(natural),
    "random": RankerAnswers.of(shuffled),
    "oracle": RankerAnswers.of(by(labels.astype(float))),
    "policy": RankerAnswers(answers, {"prompt_tokens": 100.0, "completion_tokens": 12.0, "ms_per_slate": 3.0}),
  }


def make_labels(n=120, k=5, seed=0):
  return np.eye(k, dtype=int)[np.random.default_rng(seed).integers(k, size=n)]


def test_format_and_numbers(tmp_path):
  labels = make_labels()
  segments = ["same_day"] * 40 + ["different_day"] * 79 + [None]
  results = build_results(
    dataset="toy", seeds=[0], labels=labels, rankers=make_rankers(labels), segments=segments, train_labels=labels[:10], resamples=500
  )
  write_results(tmp_path / "evaluation" / "results.json", results)
  read = load_results(tmp_path / "evaluation" / "results.json")
  assert read == json.loads(json.dumps(results))
  assert read["n"] == 120 and read["orders"]["oracle"]["recall@1"] == 1.0
  # The upstream order is that of the candidates, so its R@1 is the share of targets at index 0.
  assert read["orders"]["upstream"]["recall@1"] == pytest.approx(labels[:, 0].mean())
  lift = read["paired"]["policy_vs_upstream"]["recall@1"]
  assert lift["delta"] == pytest.approx(read["orders"]["policy"]["recall@1"] - read["orders"]["upstream"]["recall@1"])
  assert lift["relative"] == pytest.approx(lift["delta"] / read["orders"]["upstream"]["recall@1"])
  assert lift["ci95"][0] < lift["relative"] < lift["ci95"][1] and 0 < lift["p"] < 0.05
  assert read["segments"]["same_day"]["n"] == 40 and read["segments"]["different_day"]["n"] == 79
  assert set(read["presentations"]["policy"]) == {"upstream", "shuffled"} and "random" not in read["presentations"]
  policy = read["diagnostics"]["policy"]
  assert policy["valid_rate"] == 1 and 0 < policy["permutation_consistency"] < 1 and "valid_rate" in policy["shuffled"]
  assert read["diagnostics"]["upstream"]["identity_rate"] == 1
  assert sum(read["upstream_rank_histogram"]["test"]) == 120 and sum(read["upstream_rank_histogram"]["train"]) == 10
  assert read["cost"]["policy"]["prompt_tokens"] == 100


def test_labels_that_the_policy_never_saw_give_no_lift():
  rankers = make_rankers(make_labels(n=200))

  def interval(labels):
    results = build_results(dataset="toy", seeds=[0], labels=labels, rankers=rankers, resamples=300)
    return results["paired"]["policy_vs_upstream"]["mrr"]["delta_ci95"]

  assert interval(make_labels(n=200))[0] > 0
  # Each of 30 fresh draws of the labels leaves the interval clear of 0 with probability 0.05: 1.5 in all, six or more in 0.3 %.
  intervals = [interval(make_labels(n=200, seed=seed)) for seed in range(1, 31)]
  assert sum(low > 0 or high < 0 for low, high in intervals) <= 5
  # And neither side is favoured: the centres of the intervals fall on both sides of 0.
  above = sum(low + high > 0 for low, high in intervals)
  assert 7 <= above <= 23


def test_an_undefined_lift_is_null_and_one_user_leaves_no_interval(tmp_path):
  labels = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 1]])  # upstream never has a hit at rank 1
  results = build_results(dataset="toy", seeds=[0], labels=labels, rankers=make_rankers(labels), segments=["a", "b", "b"], resamples=50)
  lift = results["paired"]["oracle_vs_upstream"]["recall@1"]
  assert lift["delta"] == 1 and lift["relative"] is None and lift["ci95"] is None
  alone = results["segments"]["a"]["paired"]["oracle_vs_upstream"]
  assert alone["mrr"] == {"delta": pytest.approx(2 / 3), "delta_ci95": None, "relative": pytest.approx(2), "ci95": None, "p": None}
  assert alone["recall@1"]["delta"] == 1 and alone["recall@1"]["relative"] is None
  write_results(tmp_path / "results.json", results)


def test_subsets_are_tables_of_their_own_and_may_overlap():
  labels = make_labels()
  hard, rankers = labels[:, 0] == 0, make_rankers(labels)
  subsets = {"hard": hard, "all": np.ones(120, bool), "none": np.zeros(120, bool)}
  results = build_results(
    dataset="toy",
    seeds=[0],
    labels=labels,
    rankers=rankers,
    titles={"policy": "RL policy"},
    pairs=[("policy", "random")],
    subsets=subsets,
    buckets={"kind": subsets, "none": {}},
    resamples=300,
  )
  assert set(results["subsets"]) == {"hard", "all"} and results["buckets"]["none"] == {}
  # Buckets are the same tables, with policies alone compared, and with the upstream order and trees alone.
  for name, bucket in results["buckets"]["kind"].items():
    whole = results["subsets"][name]
    assert bucket["n"] == whole["n"] and bucket["orders"] == whole["orders"] and list(bucket["paired"]) == ["policy_vs_upstream"]
    one, other = (of["paired"]["policy_vs_upstream"]["mrr"] for of in (bucket, whole))
    assert one["delta_ci95"] == pytest.approx(other["delta_ci95"]) and one["p"] == other["p"]
  of = results["subsets"]["hard"]
  assert of["n"] == hard.sum() and of["orders"]["upstream"]["recall@1"] == 0 and of["orders"]["oracle"]["recall@1"] == 1
  low, high = of["paired"]["policy_vs_upstream"]["mrr"]["delta_ci95"]
  assert low < of["orders"]["policy"]["mrr"] - of["orders"]["upstream"]["mrr"] < high


def test_padded_slates():
  labels = np.array([[1, 0, -1], [0, 0, 1], [0, 1, -1]])
  assert rank_histogram(labels) == [1, 1, 1]
  rankers = {
    "upstream": RankerAnswers.of(np.tile(np.arange(3), (3, 1))),
    "policy": RankerAnswers.of(np.array([[0, 1, -1], [2, 1, 0], [1, 0, -1]])),
  }
  results = build_results(dataset="toy", seeds=[0], labels=labels, rankers=rankers, resamples=50)
  assert results["orders"]["policy"]["recall@1"] == 1.0 and results["diagnostics"]["policy"]["valid_rate"] == 1.0


def test_rankers_are_declared_by_the_caller(tmp_path):
  labels = make_labels()
  rankers = make_rankers(labels) | {"mine": RankerAnswers.of(make_rankers(labels, seed=1)["random"].answers["upstream"].rankings)}
  pairs = [("mine", "policy"), ("mine", "absent")]
  results = build_results(
    dataset="toy",
    seeds=[0],
    labels=labels,
    rankers=rankers,
    titles={"mine": "My ranker"},
    pairs=pairs,
    priors=["absent", "policy"],
    resamples=50,
  )
  assert results["titles"] == {"mine": "My ranker"} and results["priors"] == ["policy"]
  assert set(results["paired"]) == {f"{name}_vs_upstream" for name in rankers if name != "upstream"} | {"mine_vs_policy"}


def test_without_weights_means_are_numpys_to_the_last_digit():
  labels = make_labels(n=333)
  rankers = make_rankers(labels)
  results = build_results(dataset="toy", seeds=[0], labels=labels, rankers=rankers, subsets={"some": labels[:, 0] == 0}, resamples=50)
  measured = measure_rankers(rankers, labels)
  for name, of in measured.items():
    assert results["orders"][name] == {metric: float(values.mean()) for metric, values in of["upstream"].items()}
    some = {metric: float(values[labels[:, 0] == 0].mean()) for metric, values in of["upstream"].items()}
    assert results["subsets"]["some"]["orders"][name] == some
  assert results == build_results(
    dataset="toy", seeds=[0], labels=labels, rankers=rankers, subsets={"some": labels[:, 0] == 0}, weights=np.ones(333), resamples=50
  )


def test_a_weight_of_2_is_the_slate_twice():
  labels = make_labels()
  rankers = make_rankers(labels)
  users = np.array([f"u{place % 50}" for place in range(120)])
  segments = np.array(["a", "b"] * 60)
  weights = np.where(np.arange(120) % 3 == 0, 2.0, 1.0)
  twice = np.repeat(np.arange(120), weights.astype(int))

  def repeat(ranker):
    return RankerAnswers({name: Answers(*_rows(answers, twice)) for name, answers in ranker.answers.items()}, ranker.cost)

  options = {"dataset": "toy", "seeds": [0], "resamples": 200}
  weighted = build_results(
    labels=labels, rankers=rankers, users=users, segments=segments, weights=weights, subsets={"some": labels[:, 0] == 0}, **options
  )
  repeated = build_results(
    labels=labels[twice],
    rankers={name: repeat(ranker) for name, ranker in rankers.items()},
    users=users[twice],
    segments=segments[twice],
    subsets={"some": labels[twice, 0] == 0},
    **options,
  )
  plain = build_results(labels=labels, rankers=rankers, users=users, **options)
  assert weighted["orders"]["policy"]["mrr"] != plain["orders"]["policy"]["mrr"]
  for part in ("orders", "presentations", "paired", "diagnostics", "bootstrap"):
    assert flatten(weighted[part]) == pytest.approx(flatten(repeated[part]), rel=1e-6, abs=1e-7), part
  for of, expected in ((weighted[part][name], repeated[part][name]) for part in ("segments", "subsets") for name in weighted[part]):
    assert flatten(of["orders"]) == pytest.approx(flatten(expected["orders"])) and of["n"] < expected["n"]
    assert flatten(of["paired"]) == pytest.approx(flatten(expected["paired"]))


def _rows(answers, rows):
  shown = None if answers.shown is None else answers.shown[rows]
  return answers.rankings[rows], shown, None if answers.errors is None else [answers.errors[row] for row in rows]


def flatten(value, prefix=""):
  """Leaves that are numbers, by their path."""
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, of in items for path, leaf in flatten(of, f"{prefix}/{key}").items()}
  return {} if value is None else {prefix: value}


def test_bad_input_is_named(tmp_path):
  labels = make_labels(4)
  with pytest.raises(ValueError, match="lack 'upstream'"):
    build_results(dataset="toy", seeds=[0], labels=labels, rankers={})
  with pytest.raises(ValueError, match=r"policy \(upstream\) has rankings"):
    build_results(
      dataset="toy", seeds=[0], labels=labels, rankers=make_rankers(labels) | {"policy": RankerAnswers.of(np.zeros((3, 5), int))}
    )
  for weights in (np.ones(3), np.array([1, 1, 0, 1]), np.array([1, 1, np.nan, 1])):
    with pytest.raises(ValueError, match="weights"):
      build_results(dataset="toy", seeds=[0], labels=labels, rankers=make_rankers(labels), weights=weights)
  with pytest.raises(ResultsError, match="no such file"):
    load_results(tmp_path / "results.json")
  (tmp_path / "results.json").write_text("{")
  with pytest.raises(ResultsError, match="is not JSON"):
    load_results(tmp_path / "results.json")
  (tmp_path / "results.json").write_text('{"dataset": "toy", "seeds": [0]}')
  with pytest.raises(ResultsError, match="n is missing"):
    load_results(tmp_path / "results.json")
