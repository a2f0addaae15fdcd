"""Metrics of every slate, written and read back."""

import numpy as np
import pytest

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.per_slate import load_per_slate, write_per_slate
from gr2_jax.evaluation.results import Answers, Order, ResultsError, measure_orders

LABELS = np.array([[1, 0, 0], [0, 0, 1]])


def test_the_first_presentation_of_every_order_comes_back(tmp_path):
  reverse = np.array([[2, 1, 0], [2, 1, 0]])
  policy = Order({"upstream": Answers(reverse), "shuffled_1": Answers(np.full((2, 3), -1))})
  metrics = measure_orders({"upstream": Order.of(reverse[:, ::-1]), "policy": policy}, LABELS)
  write_per_slate(tmp_path / "x.npz", metrics, ["u1", "u2"])
  read = load_per_slate(tmp_path / "x.npz")
  assert read.users.tolist() == ["u1", "u2"]
  assert set(read.orders) == {"upstream", "policy"} and set(read.orders["policy"]) == set(METRICS)
  assert read.orders["upstream"]["recall@1"].tolist() == [1, 0]
  assert read.orders["policy"]["recall@1"].tolist() == [0, 1]
  # Eq 5: the target of the first slate stands behind both others, that of the second before both.
  assert read.orders["policy"]["auc"].tolist() == [0, 1]


def test_a_file_that_is_missing_or_of_other_metrics_is_told(tmp_path):
  with pytest.raises(ResultsError, match=r"x\.npz: there is no such file; run the evaluation stage first"):
    load_per_slate(tmp_path / "x.npz")
  np.savez(tmp_path / "x.npz", users=np.array(["u"]), metrics=np.array(["recall@1", "precision"]))
  with pytest.raises(ResultsError, match=r"holds recall@1, precision instead of recall@1, recall@3"):
    load_per_slate(tmp_path / "x.npz")
