"""Sentences say who is above whom by the numbers alone, and say so where the numbers tell nothing."""

import pytest

from gr2_jax.reports.sentences import (
  compare_sentence,
  comparison_sentences,
  compression_sentence,
  copying_sentence,
  describe_run,
  format_difference,
  ranking_sentence,
  run_sentences,
  sentences_list,
  shares_sentence,
  steps_sentence,
)


def pair(delta, low=None, high=None):
  return {"delta": delta, "delta_ci95": None if low is None else [low, high]}


ABOVE, BELOW, LEVEL = pair(0.0421, 0.027, 0.057), pair(-0.01, -0.02, -0.001), pair(0.001, -0.003, 0.005)


@pytest.mark.parametrize(
  ("of", "told"),
  [
    (ABOVE, "+.042 [.027, .057]"),
    (BELOW, "-.010 [-.020, -.001]"),
    (pair(0.0, -0.0001, 0.0), "+.000 [.000, .000]"),
    (pair(-1.5, -2.0, -1.0), "-1.500 [-2.000, -1.000]"),
    (pair(0.9999, 0.9, 1.0), "+1.000 [.900, 1.000]"),
    (pair(0.1), "+.100 [one user]"),
  ],
)
def test_a_difference_has_three_digits_and_its_interval(of, told):
  assert format_difference(of) == told


def test_two_orders_are_compared_metric_by_metric():
  said = compare_sentence("X", "Y", {"recall@1": ABOVE, "ndcg@3": ABOVE})
  assert said == "X is above Y by +.042 [.027, .057] R@1 and +.042 [.027, .057] N@3."
  said = compare_sentence("X", "Y", {"recall@1": LEVEL, "ndcg@3": BELOW})
  assert said == "X is behind Y by -.010 [-.020, -.001] N@3, and not told apart from it in R@1 (+.001 [-.003, .005])."
  assert compare_sentence("X", "Y", {}) == "X and Y were not compared in pairs."


def test_a_run_tells_of_its_policies_and_not_of_trees():
  pairs = {name: {"recall@1": ABOVE} for name in ("lambdamart_vs_upstream", "policy_vs_upstream", "policy_vs_sft", "policy_vs_lambdamart")}
  results = {"titles": {"sft": "SFT policy", "policy": "RL policy"}, "paired": pairs}
  assert run_sentences(results) == [
    "The RL policy is above the upstream order by +.042 [.027, .057] R@1.",
    "The RL policy is above the SFT policy by +.042 [.027, .057] R@1.",
  ]


def test_a_run_is_described_by_its_data_and_versions():
  versions = {"jax": "0.10.2", "git_commit": None}
  assert describe_run(versions, {"dataset": "a|b", "seeds": [0, 1], "n": 1200}) == "a\\|b, seed 0, 1, 1,200 test slates; jax 0.10.2."


def line(order, base, **paired):
  return {"order": order, "base": base, "paired": paired}


def test_a_comparison_is_told_by_how_many_pairs_and_the_largest_of_them():
  lines = [
    line("a/policy", "a/sft", ndcg=ABOVE),
    line("b/policy", "b/sft", ndcg=pair(0.1, 0.05, 0.15)),
    line("c/policy", "c/sft", ndcg=BELOW),
  ]
  sweep = {
    "comparisons": {"RL against SFT": [*lines, line("d/policy", "d/sft", ndcg=LEVEL)], "nothing": []},
    "shown": {"RL against SFT": ["ndcg"]},
  }
  assert comparison_sentences(sweep) == [
    "RL against SFT, ndcg: above in 2 of 4, most by +.100 [.050, .150] (b: policy – b: sft); behind in 1 of 4, by -.010 [-.020, -.001] "
    "(c: policy – c: sft); not told apart in 1 of 4."
  ]


def variant(lift, copies):
  return {"paired": {"policy_vs_upstream": {"recall@1": lift}}, "training": {"identity_rate": {"last": copies}}}


def test_variants_are_ranked_by_their_lift_and_by_what_they_copy():
  sweep = {"variants": {"naive": variant(LEVEL, 0.34), "shuffled": variant(ABOVE, 0.01), "never_run": variant(BELOW, None)}}
  assert ranking_sentence(sweep) == (
    "RL policies against the upstream order, R@1: above in 1 of 3, by +.042 [.027, .057] (shuffled); behind in 1 of 3, by -.010 "
    "[-.020, -.001] (never run); not told apart in 1 of 3."
  )
  assert "naive copies its input order most often, in 34 % of the valid answers, and shuffled least, in 1 %." in copying_sentence(sweep)
  assert copying_sentence({"variants": {"a": variant(ABOVE, None)}}) == "No variant logged how much its answers copy."


def test_shares_of_a_gain_that_may_be_none_are_no_result():
  def share(order, value):
    return {"order": order, "recall@1": {"share": value, "ci95": value and [value - 0.1, value + 0.1]}}

  sweep = {"shares": [share("a/opd", 0.9), share("b/opd", 0.5), share("c/opd", None)]}
  assert shares_sentence(sweep) == "Of the teacher's gain in R@1, a: opd keeps 90 % [80, 100], and b: opd keeps 50 % [40, 60]."
  assert "no student has a share" in shares_sentence({"shares": [share("c/opd", None)]})


def test_the_shortest_history_that_is_not_told_to_be_worse_is_named():
  def compressed(rules, sids, tokens):
    paired = {"policy_compressed_rules_vs_policy": {"ndcg@3": rules}, "policy_compressed_sids_vs_policy": {"ndcg@3": sids}}
    cost = {"policy": 100, "policy_compressed_rules": tokens, "policy_compressed_sids": tokens - 5}
    return {"compressed": {"paired": paired, "cost": {name: {"prompt_tokens": count} for name, count in cost.items()}}}

  sweep = {"variants": {"budget_12": compressed(LEVEL, BELOW, 20), "budget_48": compressed(LEVEL, LEVEL, 60), "none": {"compressed": {}}}}
  said = compression_sentence(sweep)
  assert said.startswith("Of 4 kinds of compressed histories 3 are not told to be behind full ones in N@3")
  assert said.endswith("rules in budget 12 leaves out most, 80 % of the prompt's tokens, at +.001 [-.003, .005].")
  assert compression_sentence({"variants": {"a": compressed(BELOW, BELOW, 20)}}) == "Every compressed history costs N@3."


def test_a_training_is_told_by_its_first_and_last_tenth():
  lines = [{"step": step, "recall@1": 0.1 if step <= 2 else 0.5} for step in range(1, 21)]
  assert steps_sentence("own", lines, "recall@1").endswith("goes from .100 in the first tenth of the steps to .500 in the last.")
  assert steps_sentence("own", [], "recall@1") == "own: no R@1 was logged."


def test_names_cannot_break_the_list():
  assert sentences_list(["a | b", "<script>"]) == "- a \\| b\n- \\<script>"
