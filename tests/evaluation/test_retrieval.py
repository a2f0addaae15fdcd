"""Full-catalogue metrics by hand."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.data.splits import NextItem
from gr2_jax.evaluation.retrieval import retrieval_metrics, retrieval_ranks, target_ranks


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
