"""How a policy is asked: one that has diverged is named, and not measured."""

import contextlib
import types

import numpy as np
import pytest

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.policy_answers import ask_policy
from gr2_jax.rollout.rerank import RankedSlates


def test_a_policy_whose_scores_are_not_finite_is_named():
  stage = types.SimpleNamespace(
    options=types.SimpleNamespace(shuffles=0), seed=0, task=lambda *_: contextlib.nullcontext(), on_progress=lambda task: lambda done: None
  )
  nothing = np.zeros(2, np.int32)
  ranked = RankedSlates(np.array([[0, 1], [-1, -1]]), [None, "not_finite"], [[], []], nothing, nothing, nothing)
  slates = [Slate("u", ("a",), ("b", "c"), (0, 1))] * 2
  with pytest.raises(DataError, match=r"^sft_direct: its scores of 1 "):
    ask_policy(stage, "sft_direct", None, lambda *_: ranked, slates)
