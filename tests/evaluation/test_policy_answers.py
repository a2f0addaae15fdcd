"""How a policy is asked: single answers from numbers that are not finite are invalid, a policy of no others is named."""

import contextlib
import types

import numpy as np
import pytest

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.policy_answers import ask_policy
from gr2_jax.rollout.rerank import RankedSlates


@pytest.fixture
def stage():
  return types.SimpleNamespace(
    options=types.SimpleNamespace(shuffles=0),
    run=types.SimpleNamespace(main=False),
    seed=0,
    task=lambda *_: contextlib.nullcontext(),
    on_progress=lambda task: lambda done: None,
  )


def ask(stage, rankings, errors):
  nothing = np.zeros(len(errors), np.int32)
  ranked = RankedSlates(np.array(rankings), errors, [[]] * len(errors), nothing, nothing, nothing)
  slates = [Slate("u", ("a",), ("b", "c"), (0, 1))] * len(errors)
  return ask_policy(stage, "sft_direct", None, lambda *_: ranked, slates)


def test_an_answer_whose_numbers_are_not_finite_is_invalid(stage):
  answers = ask(stage, [[0, 1], [-1, -1]], [None, "not_finite"]).answers["upstream"]
  assert answers.errors == [None, "not_finite"] and answers.rankings.tolist() == [[0, 1], [-1, -1]]


def test_a_policy_none_of_whose_numbers_is_finite_is_named(stage):
  with pytest.raises(DataError, match=r"^sft_direct: "):
    ask(stage, [[-1, -1]] * 2, ["not_finite"] * 2)
