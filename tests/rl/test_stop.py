"""Reinforcement learning that learns nothing stops and says why."""

import pytest

from gr2_jax.rl.stop import NoSignalError, SilenceCounter
from gr2_jax.training.metric import Metric


def _metrics(no_answer, alike, groups=2.0, truncated=0.5):
  """What `collect_groups` counts of a step in which so many groups had no valid answer, or answers of equal reward."""
  return {
    "all_invalid_fraction": Metric(no_answer, groups),
    "all_equal_fraction": Metric(alike, groups),
    "truncated_rate": Metric(truncated * 4, 4.0),
  }


def test_steps_without_a_signal_in_a_row_stop_with_the_reasons():
  counter, nothing = SilenceCounter(2), _metrics(1.0, 1.0)
  for metrics in (nothing, _metrics(0.0, 1.0), nothing):  # the second one has a signal, so that two never follow each other
    counter.add(metrics)
  with pytest.raises(NoSignalError, match=r"2 steps in a row.* of 4 groups 2 had no valid answer and 2 .*equal reward; 50% of the answers"):
    counter.add(nothing)


def test_one_group_with_a_signal_is_enough():
  counter = SilenceCounter(1)
  counter.add(_metrics(3.0, 4.0, groups=8.0))
  with pytest.raises(NoSignalError):
    counter.add(_metrics(4.0, 4.0, groups=8.0))
