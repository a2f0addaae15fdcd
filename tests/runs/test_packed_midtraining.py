"""Users are dealt to folds once, and each training slate is scored by the model of its user's fold."""

from types import SimpleNamespace

import numpy as np
import pytest

from gr2_jax.data.schema import DataError, History, Slate
from gr2_jax.runs import packed_midtraining
from gr2_jax.runs.packed_midtraining import PackedOptions, _folds, held_out_users, out_of_fold_packed_scores

HISTORIES = tuple(History(f"u{i}", ("a", "b", "c")[: 1 + i % 3]) for i in range(30))


def make_stage(**options):
  """What is read of a stage: its log, which is longer than the training part, and its options."""
  packed = PackedOptions(**options)
  return SimpleNamespace(
    seed=3,
    run=None,
    catalogue=None,
    mesh=None,
    log=(*HISTORIES, *(History(f"late{i}", ("a", "b")) for i in range(30))),
    split=SimpleNamespace(train=HISTORIES),
    options=SimpleNamespace(packed=packed),
    config=SimpleNamespace(midtrain=SimpleNamespace(packed=packed)),
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"folds": 1}, r"^folds: 1 leaves no other users to learn from; use 0 \(none\) or at least 2"),
    ({"folds": -1}, "^folds: -1 must be at least 0"),
    ({"negatives": 0}, "^negatives: 0 must be at least 1"),
    ({"dropout": 1.0}, "^dropout: 1.0 must be"),
  ],
)
def test_options_that_could_not_work_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    PackedOptions(**options)


def test_each_user_is_outside_of_one_fold():
  folds = _folds(HISTORIES, 4, 3)
  assert len(folds) == 4 and (np.sum(folds, axis=0) == 1).all()
  assert [int(outside.sum()) for outside in folds] == [8, 8, 7, 7]
  np.testing.assert_array_equal(folds, _folds(HISTORIES, 4, 3))
  assert not np.array_equal(folds, _folds(HISTORIES, 4, 4))
  assert _folds(HISTORIES, 0, 3) == []
  with pytest.raises(DataError, match="folds: 31 for 30 users"):
    _folds(HISTORIES, 31, 3)


def test_each_training_slate_is_scored_by_the_model_of_its_user_s_fold(monkeypatch):
  """Models of which each gives its own number, and for candidate k adds k / 10."""

  def load(run, catalogue, mesh, name):
    def scores(slates):
      width = max(len(slate.candidates) for slate in slates)
      found = int(name.removeprefix("fold_")) + np.arange(width) / 10 + np.zeros((len(slates), 1))
      return np.where(np.arange(width) < [[len(slate.candidates)] for slate in slates], found, np.nan)

    return scores

  monkeypatch.setattr(packed_midtraining, "load_packed_scores", load)
  users = ["u7", "u3", "u7", "u20", "u29", "u0"]
  slates = [Slate(user, ("a",), ("b", "c", "d")[: 3 - (user == "u20")], (1, 0, 0)[: 3 - (user == "u20")]) for user in users]
  found = out_of_fold_packed_scores(make_stage(folds=3), slates)
  fold_of = {
    history.user: fold for fold, outside in enumerate(_folds(HISTORIES, 3, 3), start=1) for history in np.array(HISTORIES)[outside]
  }
  by_hand = np.array([[fold_of[user] + k / 10 for k in range(3)] for user in users])
  by_hand[3, 2] = np.nan
  np.testing.assert_allclose(found, by_hand)
  assert len({fold_of[user] for user in users}) > 1
  # A fold of which all slates are short is as wide as the rest.
  alone = [slate for slate in slates if slate.user == "u20"] + [slate for slate in slates if fold_of[slate.user] != fold_of["u20"]]
  found = out_of_fold_packed_scores(make_stage(folds=3), alone)
  assert found.shape == (len(alone), 3) and np.isnan(found[0]).tolist() == [False, False, True]


def test_held_out_users_are_a_tenth_of_those_with_two_items():
  with_two = {history.user for history in HISTORIES if len(history.items) > 1}
  held_out = held_out_users(make_stage())
  assert len(held_out) == len(with_two) // 10 == 2 and held_out < with_two
  assert len(held_out_users(make_stage(held_out=1))) == 1
  assert len(held_out_users(make_stage(whole_log=True))) == 5  # of 20 and 30
