"""What RL and its control are told of slates: exactly the share that is asked, the same for both, and clicks weighed as they should be."""

import dataclasses

import numpy as np
import pytest

from experiments.stages import rl
from gr2_jax.data.schema import DataError
from gr2_jax.data.slates import slate_labels
from gr2_jax.runs.feedback import FeedbackOptions, choose_share, read_feedback, weigh_by_propensity
from gr2_jax.runs.run import Run
from gr2_jax.runs.stages import open_context
from gr2_jax.steps.scored import REWARDED
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress

CLICKS = FeedbackOptions(source="clicks")


@pytest.fixture
def stage(scored_run):
  return open_context(Run.open(scored_run), rl.STAGE, Progress(), StopSignal())


def read(stage, options, split="train"):
  return read_feedback(stage, split, options, small_share=0.25)


def test_by_default_all_slates_are_told_by_their_own_labels(stage):
  told = read(stage, FeedbackOptions())
  labels = slate_labels(stage.slates("train"))
  np.testing.assert_array_equal(told.labels, labels)
  np.testing.assert_array_equal(told.gains, labels)  # of one label of 1
  targets, weights = told.supervise(by_gains=False)
  np.testing.assert_array_equal(targets, labels)
  np.testing.assert_array_equal(weights, told.slates.weights)
  assert set(told.arrays) == {"labels", *REWARDED} and all(of.shape == labels.shape for of in told.arrays.values())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_a_share_is_exactly_that_and_its_arrays_are_of_the_same_slates(stage, share):
  whole, told = read(stage, FeedbackOptions()), read(stage, FeedbackOptions(share=share))
  chosen = choose_share(len(whole.slates), share, stage.seed)
  assert len(told.slates) == len(chosen) == len(set(chosen)) == round(share * len(whole.slates))
  for name, array in told.arrays.items():
    np.testing.assert_array_equal(array, whole.arrays[name][chosen])
  np.testing.assert_array_equal(told.slates.facts, whole.slates.facts[chosen])
  assert set(chosen) <= set(choose_share(len(whole.slates), 2 * share, stage.seed))
  assert len(read(stage, FeedbackOptions(share=share), "validation").slates) == len(stage.slates("validation"))


def test_clicks_are_of_what_is_seen_and_weighing_changes_gains_alone(stage):
  naive, weighed = read(stage, CLICKS), read(stage, dataclasses.replace(CLICKS, weighing="propensity", clip=3.0))
  np.testing.assert_array_equal(naive.labels, weighed.labels)
  weights = np.minimum(np.arange(1, naive.labels.shape[1] + 1), 3)  # one over 1 / (s + 1)
  np.testing.assert_allclose(weighed.gains, naive.gains * weights, rtol=1e-6)
  seen = read(stage, dataclasses.replace(CLICKS, decay=0.0))
  assert (seen.labels[:, -2:] > 0).sum() > (naive.labels[:, -2:] > 0).sum()
  assert (read(stage, CLICKS, "validation").labels != slate_labels(stage.slates("validation"))).any(), "no true label chooses the step"


def test_cross_entropy_against_weighed_gains_is_linear_in_them(stage):
  told = read(stage, dataclasses.replace(CLICKS, weighing="propensity"))
  targets, weights = told.supervise(by_gains=True)
  shares = targets / np.maximum(targets.sum(axis=1, keepdims=True), 1)
  np.testing.assert_allclose(shares * weights[:, None], told.gains, rtol=1e-5)


def test_weights_are_clipped():
  found = weigh_by_propensity(np.array([[1.0, 3.0, 0.0]]), np.array([[1.0, 0.5, 0.01]]), 1.5)
  np.testing.assert_allclose(found, [[1.0, 4.5, 0.0]])


def test_what_cannot_be_told_is_named(stage, monkeypatch):
  with pytest.raises(DataError, match=r"^--config\.rl\.feedback\.weighing: 'propensity', but the train slate of user .* set it to none"):
    read(stage, FeedbackOptions(weighing="propensity"))
  with pytest.raises(DataError, match=r"^--config\.rl\.feedback: none of 60 train slates is told a positive label"):
    monkeypatch.setattr("gr2_jax.runs.feedback.draw_clicks", lambda u, *_: (np.zeros(u.shape, np.int32), np.ones(u.shape)))
    read(stage, CLICKS)


@pytest.mark.parametrize(
  "changes", [{}, {"feedback": FeedbackOptions(share=0.2)}, {"slate": rl.SlateRewardConfig(top=3, diversity=0.5), "feedback": CLICKS}]
)
def test_rl_and_its_control_are_told_the_same_of_the_same_slates(stage, changes, monkeypatch):
  trained = []
  monkeypatch.setattr(rl, "train_scored", lambda stage, make_loss, slates, **kwargs: trained.append((make_loss, slates, kwargs)))
  stage = dataclasses.replace(stage, options=dataclasses.replace(stage.options, **changes))
  rl.run(stage)
  (_, slates, by_reward), (_, of_control, by_labels) = trained
  assert by_labels["name"] == "control" and by_reward["batch_size"] == by_labels["batch_size"]
  np.testing.assert_array_equal(slates.facts, of_control.facts)
  told = by_reward["learnt"]["labels" if "slate" not in changes else "gains"]
  np.testing.assert_array_equal(by_labels["learnt"]["targets"], told)
  np.testing.assert_array_equal(by_reward["validation"].facts, by_labels["validation"].facts)
