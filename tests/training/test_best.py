"""The best parameters are kept, from the start on and over interruptions."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.training.best import BestKeeper, abstract_params
from gr2_jax.training.checkpoints import Checkpointer

STEPS = 7


def state_of(score):
  """A state whose parameters score so much."""
  return SimpleNamespace(params={"score": jnp.float32(score), "table": jnp.arange(4.0) * score})


ABSTRACT = abstract_params(state_of(0).params)


@pytest.fixture
def keep(tmp_path):
  """`keep(scores by step, every=1) -> (keeper, steps that were scored)`; a second one goes on in the same folder."""

  def run(scores, every=1, load=False):
    told = []
    keeper = BestKeeper(
      Checkpointer(tmp_path / "best"),
      lambda params: float(params["score"]),
      every=every,
      steps=STEPS,
      abstract=ABSTRACT,
      tell=lambda step, score: told.append((step, score)),
    )
    for step, score in scores.items():
      keeper.consider(step, state_of(score))
    return keeper, told

  return run


def assert_best(keeper, step, score):
  assert (keeper.step, keeper.best) == (step, score)
  params = keeper.load(ABSTRACT)
  assert params["score"] == score
  np.testing.assert_array_equal(params["table"], np.arange(4.0) * score)


def test_the_highest_is_kept_and_every_score_told(keep):
  scores = {0: -5.0, 1: -2.0, 2: -3.0, 3: -1.0, 4: -4.0}
  keeper, told = keep(scores)
  assert told == list(scores.items())
  assert_best(keeper, 3, -1.0)


def test_of_equal_ones_the_earlier_is_kept(keep):
  assert_best(keep({0: 1.0, 1: 2.0, 2: 2.0})[0], 1, 2.0)


def test_a_training_that_makes_it_worse_leaves_its_start(keep):
  assert_best(keep({0: 3.0, 1: 2.0, 2: 1.0})[0], 0, 3.0)


def test_it_is_scored_each_so_many_steps_and_at_the_last(keep):
  keeper, told = keep({step: float(step) for step in range(STEPS + 1)}, every=3)
  assert told == [(0, 0.0), (3, 3.0), (6, 6.0), (7, 7.0)]
  assert_best(keeper, 7, 7.0)


@pytest.mark.parametrize(("later", "step", "score"), [({4: 1.0, 5: 2.0}, 2, 2.0), ({4: 1.0, 5: 2.5}, 5, 2.5)])
def test_a_training_that_goes_on_neither_loses_nor_forgets_its_best(keep, later, step, score):
  keep({0: 0.0, 1: 1.0, 2: 2.0, 3: 1.0})
  keeper, _ = keep({})
  assert (keeper.step, keeper.best) == (2, 2.0)
  assert_best(keep(later)[0], step, score)


def test_where_no_number_comes_the_start_is_kept_and_a_number_takes_its_place(keep):
  assert keep({0: float("nan")})[0].step == 0
  assert_best(keep({1: 0.5})[0], 1, 0.5)
