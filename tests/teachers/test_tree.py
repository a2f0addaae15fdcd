import numpy as np
import pytest

from gr2_jax.teachers.tree import FoldTrees, fit_lambdamart, lambdamart_scores

RANDOM = np.random.default_rng(0)
N, K = 400, 5


def slates(number):
  features = RANDOM.normal(size=(number, K, 3))
  labels = (features[..., 0] == features[..., 0].max(axis=1, keepdims=True)).astype(np.int32)
  return features, labels


def first(scores, labels):
  return np.take_along_axis(labels, scores.argmax(axis=1)[:, None], axis=1).mean()


def test_a_slate_is_scored_by_a_tree_that_never_saw_its_user():
  features, labels = slates(N)
  users = [f"u{i // 2}" for i in range(N)]  # two slates each
  validation = slates(100)
  found = FoldTrees.fit(features, labels, users, *validation, folds=4, leaves=7, seed=0).scores(features)
  assert first(found, labels) > 0.8
  # A fact that names the user and the target: whoever saw a user's other slate would know the answer.
  number = np.repeat(np.arange(N // 2), 2).astype(float)
  target = RANDOM.integers(K, size=N // 2).repeat(2)
  leaked = np.stack([np.broadcast_to(number[:, None], (N, K)), np.broadcast_to(np.arange(K), (N, K))], axis=-1)
  leaked = np.concatenate([leaked, (number[:, None] * K + np.arange(K))[..., None]], axis=-1)
  answers = (np.arange(K) == target[:, None]).astype(np.int32)
  held_out = leaked[:100], answers[:100]
  own = lambdamart_scores(fit_lambdamart(leaked, answers, *held_out, seed=0, leaves=(31,)), leaked)
  out = FoldTrees.fit(leaked, answers, users, *held_out, folds=4, leaves=31, seed=0).scores(leaked)
  assert first(out, answers) < 0.35 < first(own, answers)


def test_too_few_users_are_an_error():
  features, labels = slates(8)
  with pytest.raises(ValueError, match=r"^folds: 4 for 2 users"):
    FoldTrees.fit(features, labels, ["a", "b"] * 4, features, labels, folds=4, leaves=7, seed=0)


def test_slates_without_a_user_are_dealt_one_by_one_and_progress_is_told():
  features, labels = slates(60)
  heard = []
  found = FoldTrees.fit(features, labels, [""] * 60, features, labels, folds=3, leaves=7, seed=0, on_fold=heard.append).scores(features)
  assert found.shape == (60, K) and heard == [1, 2, 3]


def test_contributions_sum_to_the_scores_of_trees_that_never_saw_the_user_and_come_back_from_their_texts():
  features, labels = slates(N)
  trees = FoldTrees.fit(features, labels, [f"u{i // 2}" for i in range(N)], *slates(100), folds=4, leaves=7, seed=0)
  some = np.array([3, 250, 17, 399])
  added = trees.contributions(some, features[some])
  scores = trees.scores(features)
  assert added.shape == (4, K, 3) and np.abs(added).max() > 0.1
  rest = scores[some] - added.sum(axis=2)  # the same for all candidates that one tree scores
  np.testing.assert_allclose(rest, rest[:, :1] + np.zeros((4, K)), atol=1e-9)
  assert np.abs(added[..., 0]).mean() > 5 * np.abs(added[..., 1:]).mean()  # the one fact that decides
  again = FoldTrees.from_texts(trees.texts, trees.fold_of)
  np.testing.assert_array_equal(again.scores(features), scores)
  np.testing.assert_array_equal(again.contributions(some, features[some]), added)
  by_own = [lambdamart_scores(trees.models[trees.fold_of[row]], features[[row]])[0] for row in some]
  np.testing.assert_array_equal(scores[some], by_own)
  assert all(len(set(trees.fold_of[2 * user : 2 * user + 2])) == 1 for user in range(N // 2))
