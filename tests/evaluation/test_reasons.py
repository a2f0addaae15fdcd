"""Shares of true, mattering and rightly naming reasons, by hand."""

import numpy as np
import pytest

from gr2_jax.data.schema import Slate
from gr2_jax.evaluation.reasons import CheckedReason, describe_reason, find_what_matters, judge_reasons
from gr2_jax.language.statements import CATEGORY, LAST_CATEGORY, Reason, Statement

NAMES = ("popularity", "age", "leaf_next_count")
FACTS = np.array([[[3.0, 1.0, 5.0], [1.0, 1.0, 2.0], [0.0, 2.0, 9.0]], [[2.0, 5.0, 0.0], [4.0, 0.0, 1.0], [9.0, 9.0, 9.0]]])
REAL = np.array([[True, True, True], [True, True, False]])
MEDIANS = np.array([1.0, 1.0, 2.0])


def say(first, *stated):
  return Reason(first, tuple(Statement(candidate, fact, "…") for candidate, fact in stated))


def by_popularity(rows, facts):
  """A policy that reads popularity alone, in 0..9; padding is scored high and must not be read."""
  assert facts.shape == (len(rows), 3, 3)
  return np.where(REAL[rows], facts[..., 0], 100)


def test_what_the_scores_heed_matters():
  reasons = [
    say(0, (0, "popularity"), (0, "age"), (1, "popularity"), (2, "popularity")),
    say(1, (1, "popularity"), (0, "popularity"), (None, "popularity"), (1, "brand_share"), (1, LAST_CATEGORY), (1, CATEGORY)),
  ]
  assert find_what_matters(by_popularity, reasons, FACTS, REAL, NAMES, MEDIANS) == [
    (True, False, False, True),  # 3 falls to 1; age is not read; 1 is the median; of another 0 rises to 1
    (True, False, None, None, None, False),  # of another 2 falls, which speaks for it
  ]
  assert find_what_matters(by_popularity, [say(None), say(0)], FACTS, REAL, NAMES, MEDIANS) == [(), ()]


def test_shares_by_hand():
  checked = [
    CheckedReason(say(0, (0, "popularity"), (0, "age")), (True, False)),
    CheckedReason(say(1, (1, "popularity")), (True,)),
    CheckedReason(say(2), ()),
    CheckedReason(say(None), ()),
  ]
  options = {"clusters": list("abcd"), "seed": 0, "resamples": 500}
  found = judge_reasons(checked, np.array([0, 0, 2, -1]), [(True, None), (False,)], weights=np.ones(4), **options)
  assert (found["slates"], found["matter_slates"], found["no_fact"], found["facts"]) == (4, 2, 0.5, 0.75)
  assert found["true"]["share"] == pytest.approx(2 / 3) and found["matter"]["share"] == 0.5 and found["named_first"]["share"] == 0.5
  assert found["true"]["ci95"] == [0.5, 1.0]  # two slates state facts: 1 of 2, and 1 of 1
  assert found["by_fact"] == {"popularity": {"stated": 2, "true": 1.0}, "age": {"stated": 1, "true": 0.0}}
  heavy = judge_reasons(checked, np.array([0, 0, 2, -1]), [], weights=np.array([1.0, 8, 1, 1]), **options)
  assert heavy["true"]["share"] == pytest.approx(9 / 10) and heavy["matter"] == {"share": None, "ci95": None}


def test_one_user_has_no_interval_and_no_fact_no_share():
  silent = judge_reasons(
    [CheckedReason(say(0), ())] * 2, np.array([0, 1]), [], clusters=["a", "a"], weights=np.ones(2), seed=0, resamples=100
  )
  assert silent["true"] == {"share": None, "ci95": None} and silent["no_fact"] == 1
  assert silent["named_first"] == {"share": 0.5, "ci95": None}


def test_a_line_of_answers_names_items():
  slate = Slate("u", ("h",), ("x", "y"), (0, 1))
  line = describe_reason(CheckedReason(say(1, (0, "age"), (None, "age")), (True, False)), slate)
  assert line["named"] == "y"
  assert line["statements"] == [
    {"candidate": "x", "fact": "age", "said": "…", "true": True},
    {"candidate": None, "fact": "age", "said": "…", "true": False},
  ]
  assert describe_reason(CheckedReason(say(None), ()), slate) == {"named": None, "statements": []}
