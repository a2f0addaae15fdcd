"""Full-catalogue metrics by hand."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.data.splits import NextItem
from gr2_jax.evaluation.retrieval import compare_retrieval, ranks_by_row, retrieval_metrics, retrieval_ranks, target_ranks


def test_a_shared_semantic_id_is_no_free_hit():
  # Items 1 and 2 share a score: each of them ranks behind the other.
  scores = np.array([[0.9, 0.5, 0.5, -np.inf]] * 4, np.float32)
  assert target_ranks(scores, np.array([0, 1, 2, 3])).tolist() == [0, 2, 2, 4]


def test_a_score_that_is_nan_was_not_retrieved_and_stands_before_nothing():
  ranks = target_ranks(np.full((4, 10), np.nan), np.arange(4))
  assert ranks.tolist() == [10] * 4
  assert retrieval_metrics(ranks) == {"n": 4, "recall@5": 0.0, "ndcg@5": 0.0, "recall@10": 0.0, "ndcg@10": 0.0}
  assert target_ranks(np.array([[np.nan, 0.5, np.inf]]), np.array([1])).tolist() == [1]


def test_a_ranker_whose_scores_are_nan_is_named():
  catalogue = Catalogue(tuple(Item(str(i), f"item {i}") for i in range(3)))
  examples = [NextItem(user="a", history=("0",), target="2", timestamp=None, segment=None)]
  with pytest.raises(DataError, match="my ranker"):
    retrieval_ranks(lambda past: np.array([[0.0, np.nan, 1.0]] * len(past)), examples, catalogue, ranker="my ranker")


def test_metrics_by_hand():
  # Ranks 0, 4, 7, 20. R@5 = 2/4, R@10 = 3/4, N@5 = (1 + 1/log2(6))/4.
  metrics = retrieval_metrics(np.array([0, 4, 7, 20]))
  assert metrics["recall@5"] == 0.5 and metrics["recall@10"] == 0.75 and metrics["n"] == 4
  np.testing.assert_allclose(metrics["ndcg@5"], (1 + 1 / np.log2(6)) / 4)


def test_history_is_masked_but_a_repeated_target_stays_reachable():
  catalogue = Catalogue(tuple(Item(str(i), f"item {i}") for i in range(4)))
  examples = [
    NextItem(user="a", history=("0", "1"), target="2", timestamp=None, segment=None),
    NextItem(user="b", history=("0", "3"), target="3", timestamp=None, segment=None),
  ]
  scores = lambda histories: np.array([[4.0, 3.0, 2.0, 1.0]] * len(histories))
  ranks = retrieval_ranks(scores, examples, catalogue)
  assert ranks["open"].tolist() == [2, 3]
  assert ranks["masked"].tolist() == [0, 2]


def test_rankers_side_by_side_have_the_ranks_that_each_has_alone():
  random = np.random.default_rng(0)
  catalogue = Catalogue(tuple(Item(str(i), f"item {i}") for i in range(30)))
  examples = [NextItem(user=str(i), history=tuple(map(str, random.permutation(30)[:3])), target=str(i % 30)) for i in range(300)]
  tables = {"a": random.normal(size=(30, 30)), "b": random.normal(size=(30, 30))}
  score = lambda name: lambda past: tables[name][past[:, 0]]
  told = []
  ranks = ranks_by_row(lambda past: ((name, score(name)(past)) for name in tables), examples, catalogue, on_progress=told.append)
  assert told == [256, 44] and list(ranks) == ["a", "b"]
  for name, of in ranks.items():
    np.testing.assert_array_equal(of, retrieval_ranks(score(name), examples, catalogue)["masked"])
  broken = lambda past: iter([("my ranker", np.full((len(past), 30), np.nan))])
  with pytest.raises(DataError, match="my ranker: its scores are NaN"):
    ranks_by_row(broken, examples, catalogue)


def test_rows_and_their_differences_by_hand():
  ranks = {"good": np.array([0, 7, 20, 3] * 50), "bad": np.array([0, 20, 20, 9] * 50)}
  found = compare_retrieval(ranks, [("good", "bad")], seed=0, resamples=500)
  good, paired = found["rows"]["good"], found["paired"]["good_vs_bad"]
  assert found["n"] == 200 and good["recall@5"]["value"] == 0.5 and good["recall@10"]["value"] == 0.75
  assert good["ndcg@10"]["value"] == pytest.approx((1 + 1 / np.log2(9) + 1 / np.log2(5)) / 4)
  assert found["rows"]["bad"]["recall@10"]["value"] == 0.5 and paired["recall@10"]["delta"] == pytest.approx(0.25)
  low, high = paired["recall@10"]["ci95"]
  # One user in four differs: standard error sqrt(.25 x .75 / 200) = .031.
  assert 0.17 < low < 0.21 and 0.29 < high < 0.33
  assert paired["recall@5"]["delta"] == pytest.approx(0.25) and good["recall@10"]["ci95"][0] < 0.75 < good["recall@10"]["ci95"][1]
  with pytest.raises(ValueError, match="a bootstrap needs at least two"):
    compare_retrieval({"good": np.array([0])}, [], seed=0)
