"""When a repeated run agrees: bit for bit, within what the metric's own interval and seeds allow, or not."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.per_slate import PerSlate
from gr2_jax.reports.repetition import compare_repetition, judge_repetition, render_repetition, repetition_page

N = 200
RNG = np.random.default_rng(0)
UPSTREAM = RNG.integers(2, size=N).astype(float)
POLICY = RNG.integers(2, size=N).astype(float)
# Of a mean of 200 values 0 or 1 the interval is 1.96 standard errors wide on either side.
HALF = 1.96 * math.sqrt(POLICY.var() / N)


def measured(policy=POLICY, upstream=UPSTREAM, users=None, **more):
  users = np.array([f"u{i}" for i in range(len(policy))]) if users is None else np.asarray(users)
  rankers = {"upstream": upstream, "policy": policy, **more}
  return PerSlate(users, np.ones(len(policy)), {name: dict.fromkeys(METRICS, of) for name, of in rankers.items()})


def moved(by):
  """The policy's values with a mean that is `by` higher."""
  return POLICY + by


def judge(found, expected_equal=False):
  return judge_repetition({**found, "expected_equal": expected_equal}, {})


def test_equal_bit_for_bit():
  found = compare_repetition(measured(), measured(), resamples=200)
  assert found["same_slates"] and found["counts"] == {"equal": 16, "agrees": 0, "differs": 0, "untold": 0}
  assert judge(found, True) == "Repeated bit for bit: all 16 metrics of 2 rankers are equal on each of 200 test slates."


@pytest.mark.parametrize(("by", "verdict"), [(0.8, "agrees"), (-0.8, "agrees"), (1.25, "differs"), (-1.25, "differs")])
def test_a_difference_within_half_the_interval_agrees(by, verdict):
  found = compare_repetition(measured(), measured(moved(by * HALF)), resamples=2000)
  of = found["rankers"]["policy"]["mrr"]
  assert of["tolerance"] == pytest.approx(HALF, rel=0.1) and of["difference"] == pytest.approx(by * HALF)
  assert of["verdict"] == verdict and found["rankers"]["upstream"]["mrr"]["verdict"] == "equal"
  assert ("DOES NOT AGREE in 8: policy R@1" in judge(found)) == (verdict == "differs")


def test_a_change_in_the_last_bit_is_no_equality_and_is_said_where_equality_was_expected():
  found = compare_repetition(measured(), measured(np.nextafter(POLICY, 2)), resamples=200)
  assert found["counts"] == {"equal": 8, "agrees": 8, "differs": 0, "untold": 0}
  assert judge(found, True).startswith("NOT REPEATED BIT FOR BIT, though configuration, data, code, versions and machine are those")
  assert judge(found).startswith("8 of 16 metrics of 2 rankers are equal bit for bit, 8 more agree")


def test_seeds_that_differ_widely_widen_the_tolerance():
  seeds = [measured(), measured(moved(0.3)), measured(moved(-0.3))]
  found = compare_repetition(measured(), measured(moved(0.5)), seeds, resamples=200)
  of = found["rankers"]["policy"]["recall@1"]
  assert of["tolerance"] == pytest.approx(1.96 * math.sqrt(2) * 0.3) and of["verdict"] == "agrees"
  assert compare_repetition(measured(), measured(moved(0.5)), resamples=200)["rankers"]["policy"]["recall@1"]["verdict"] == "differs"


def test_other_slates_are_two_independent_means():
  other = measured(moved(1.3 * HALF), upstream=1 - UPSTREAM)
  found = compare_repetition(measured(), other, resamples=2000)
  of = found["rankers"]["policy"]["mrr"]
  assert not found["same_slates"] and of["tolerance"] == pytest.approx(math.sqrt(2) * HALF, rel=0.1) and of["verdict"] == "agrees"
  assert "the test slates are not the same" in judge(found)
  # Names of users that come again are not the same slates, however alike the policy is.
  assert compare_repetition(measured(), measured(upstream=1 - UPSTREAM), resamples=50)["counts"]["equal"] == 0


def test_one_user_leaves_no_tolerance_and_rankers_that_one_side_lacks_are_named():
  there, here = measured(users=["u"] * N, tree=POLICY), measured(moved(0.1), users=["u"] * N, prm=POLICY)
  found = compare_repetition(there, here, resamples=50)
  assert found["rankers"]["policy"]["mrr"]["verdict"] == "untold" and found["rankers"]["policy"]["mrr"]["tolerance"] is None
  assert (found["missing"], found["added"]) == (["tree"], ["prm"])
  told = judge(found)
  assert "8 have no tolerance" in told and "tree not measured here" in told and "prm measured here only" in told


def test_page_and_table_show_the_same_differences():
  found = compare_repetition(measured(), measured(moved(2 * HALF)), resamples=500)
  found |= {"file": "x.gr2", "run": "naive/seed_0", "expected_equal": False, "differences": {"code": ["git_commit: a -> b"], "data": []}}
  page = repetition_page(found, {"policy": "RL policy"})
  assert "# Repetition of x.gr2, naive/seed_0" in page and "- code: git_commit: a -> b" in page
  value = f"{2 * HALF:+.4f} ± "
  assert f"<br>{value}" in page and "| upstream order |" in page and "RL policy" in page
  console = Console(file=io.StringIO(), width=110)
  console.print(render_repetition(found, {"policy": "RL policy"}))
  shown = console.file.getvalue()
  assert value in shown and "!" in shown and "=" in shown and "…" not in shown
