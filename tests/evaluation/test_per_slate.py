"""Metrics of every slate, written and read back."""

import numpy as np
import pytest

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.per_slate import have_same_slates, load_per_slate, pool_seeds, write_per_slate
from gr2_jax.evaluation.results import Answers, RankerAnswers, ResultsError, measure_rankers

LABELS = np.array([[1, 0, 0], [0, 0, 1]])


def test_the_first_presentation_of_every_ranker_comes_back(tmp_path):
  reverse = np.array([[2, 1, 0], [2, 1, 0]])
  policy = RankerAnswers({"upstream": Answers(reverse), "shuffled_1": Answers(np.full((2, 3), -1))})
  metrics = measure_rankers({"upstream": RankerAnswers.of(reverse[:, ::-1]), "policy": policy}, LABELS)
  write_per_slate(tmp_path / "x.npz", metrics, ["u1", "u2"])
  read = load_per_slate(tmp_path / "x.npz")
  assert read.users.tolist() == ["u1", "u2"] and read.weights.tolist() == [1, 1]
  assert set(read.rankers) == {"upstream", "policy"} and set(read.rankers["policy"]) == set(METRICS)
  assert read.rankers["upstream"]["recall@1"].tolist() == [1, 0]
  assert read.rankers["policy"]["recall@1"].tolist() == [0, 1]
  # Eq 5: the target of the first slate stands behind both others, that of the second before both.
  assert read.rankers["policy"]["auc"].tolist() == [0, 1]


def test_a_file_that_is_missing_or_of_other_metrics_is_told(tmp_path):
  with pytest.raises(ResultsError, match=r"x\.npz: there is no such file; run the evaluation stage first"):
    load_per_slate(tmp_path / "x.npz")
  np.savez(tmp_path / "x.npz", users=np.array(["u"]), metrics=np.array(["recall@1", "precision"]))
  with pytest.raises(ResultsError, match=r"holds recall@1, precision instead of recall@1, recall@3"):
    load_per_slate(tmp_path / "x.npz")


def test_weights_come_back_and_files_without_them_weigh_all_alike(tmp_path):
  metrics = measure_rankers({"upstream": RankerAnswers.of(np.array([[0, 1, 2], [0, 1, 2]]))}, LABELS)
  path = tmp_path / "x.npz"
  write_per_slate(path, metrics, ["u1", "u2"], np.array([1.0, 2.5]))
  assert load_per_slate(path).weights.tolist() == [1, 2.5]
  with np.load(path) as arrays:
    np.savez(path, **{name: arrays[name] for name in arrays if name != "weights"})
  assert load_per_slate(path).weights.tolist() == [1, 1]


def test_seeds_are_pooled_and_their_users_are_others(tmp_path):
  metrics = measure_rankers({"upstream": RankerAnswers.of(np.array([[0, 1, 2], [0, 1, 2]]))}, LABELS)
  write_per_slate(tmp_path / "x.npz", metrics, ["u1", "u2"], np.array([1.0, 2.5]))
  one = load_per_slate(tmp_path / "x.npz")
  metrics, clusters, weights = pool_seeds({0: one, 3: one}, ["upstream"])
  assert clusters.tolist() == ["0/u1", "0/u2", "3/u1", "3/u2"] and weights.tolist() == [1, 2.5, 1, 2.5]
  assert metrics["upstream"]["recall@1"].tolist() == [1, 0, 1, 0]
  assert have_same_slates(one, one)
  assert not have_same_slates(one, one._replace(users=one.users[::-1])) and not have_same_slates(one, one._replace(weights=np.ones(2)))


def test_what_was_measured_besides_comes_back_and_is_pooled_where_all_have_it(tmp_path):
  metrics = measure_rankers({"upstream": RankerAnswers.of(np.array([[0, 1, 2], [0, 1, 2]]))}, LABELS)
  more = {"upstream": {"upstream": metrics["upstream"]["upstream"] | {"brands@3": np.array([0.5, 1.0])}}}
  for name, of in (("x", metrics), ("y", more)):
    write_per_slate(tmp_path / f"{name}.npz", of, ["u1", "u2"])
  plain, measured = (load_per_slate(tmp_path / f"{name}.npz") for name in "xy")
  assert measured.rankers["upstream"]["brands@3"].tolist() == [0.5, 1] and "brands@3" not in plain.rankers["upstream"]
  assert pool_seeds({0: measured, 1: measured}, ["upstream"]).rankers["upstream"]["brands@3"].tolist() == [0.5, 1, 0.5, 1]
  assert set(pool_seeds({0: measured, 1: plain}, ["upstream"]).rankers["upstream"]) == set(METRICS)
