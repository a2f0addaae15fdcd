"""The card's first line: who beats whom, and where that is not known."""

import pytest

from gr2_jax.reports.tables import ONE_USER_NOTE, escape_markdown
from gr2_jax.reports.verdict import list_comparisons, verdict

BETTER = {"delta": 0.05, "delta_ci95": [0.01, 0.09], "relative": 0.25, "ci95": [0.05, 0.45], "p": 0.01}
WORSE = {"delta": -0.05, "delta_ci95": [-0.09, -0.01], "relative": -0.25, "ci95": [-0.45, -0.05], "p": 0.01}
EVEN = {"delta": 0.05, "delta_ci95": [-0.01, 0.11], "relative": 0.25, "ci95": [-0.05, 0.55], "p": 0.2}
ALONE = {"delta": 0.05, "delta_ci95": None, "relative": 0.25, "ci95": None, "p": None}


def told(*upstream, trees=None, start=None):
  paired = {"policy_vs_upstream": dict(zip(("recall@1", "ndcg@3"), upstream, strict=True))}
  if trees:
    paired["policy_vs_lambdamart"] = {"recall@1": trees, "ndcg@3": trees}
  if start:
    paired["policy_vs_midtrain"] = {"recall@1": start, "ndcg@3": start}
  return verdict({"orders": {"upstream": {}, "policy": {}}, "paired": paired, "titles": {"policy": "RL policy"}})


@pytest.mark.parametrize(
  ("upstream", "line"),
  [
    ((BETTER, BETTER), "The RL policy is above the upstream order."),
    ((WORSE, WORSE), "The RL policy is behind the upstream order."),
    ((EVEN, EVEN), "The RL policy is level with the upstream order."),
    ((BETTER, EVEN), "The RL policy is above the upstream order in R@1 and level in N@3."),
    ((EVEN, BETTER), "The RL policy is above the upstream order in N@3 and level in R@1."),
    ((BETTER, WORSE), "The RL policy is above the upstream order in R@1 and behind in N@3."),
    ((WORSE, EVEN), "The RL policy is behind the upstream order in R@1 and level in N@3."),
    ((ALONE, ALONE), f"The RL policy is not told apart from the upstream order. {ONE_USER_NOTE}"),
  ],
)
def test_the_policy_against_the_upstream_order(upstream, line):
  assert told(*upstream) == line


def test_the_policy_against_trees():
  assert told(BETTER, BETTER, trees=WORSE) == "The RL policy is above the upstream order; behind LambdaMART."
  assert told(BETTER, BETTER, trees=BETTER) == "The RL policy is above the upstream order and LambdaMART."
  assert told(EVEN, EVEN, trees=BETTER) == "The RL policy is above LambdaMART; level with the upstream order."


def test_a_policy_below_the_model_that_it_began_as_is_told_so():
  assert told(BETTER, BETTER, start=WORSE).endswith("; behind the mid-trained model asked for the next item alone.")
  assert "mid-trained" not in told(BETTER, BETTER, start=BETTER)


def test_what_was_not_compared_is_not_judged():
  assert verdict({"orders": {"upstream": {}}, "paired": {}}) == "No policy was measured in this run."
  nothing = {"orders": {"upstream": {}, "policy": {}}, "paired": {}}
  assert "were not compared" in verdict(nothing) and list_comparisons(nothing) == []


def of_two_lines():
  pair, even = ({"recall@1": of, "ndcg@3": of} for of in (BETTER, EVEN))
  return {
    "orders": {"upstream": {}, "policy": {}, "direct": {}, "sft": {}},
    "titles": {"policy": "RL policy", "sft": "SFT policy", "direct": "direct policy", "rl_control": "cross-entropy control"},
    "main_line": "direct",
    "paired": {
      "direct_vs_upstream": pair,
      "direct_vs_lambdamart": pair,
      "direct_vs_lambdamart_all": even,
      "direct_vs_policy": even,
      "direct_vs_bayes": {"recall@1": WORSE, "ndcg@3": WORSE},
      "policy_vs_upstream": pair,
      "policy_vs_sft": pair,
      "policy_vs_rl_control": even,
    },
  }


def test_the_line_that_validation_chose_is_told_of_and_what_rl_adds():
  results = of_two_lines()
  assert verdict(results) == (
    "The direct policy, chosen on validation slates before the RL policy, is above the upstream order and LambdaMART; level with "
    "LambdaMART (all facts). The RL policy is above the SFT policy that it started from; level with its cross-entropy control."
  )
  alone = verdict(results | {"main_line": "policy"})
  assert alone.startswith("The RL policy is above the upstream order. It is above the SFT policy") and "chosen" not in alone
  distilled = results | {
    "priors": ["opd", "sft"],
    "paired": results["paired"] | {"policy_vs_opd": results["paired"]["policy_vs_rl_control"]},
  }
  distilled["titles"] = results["titles"] | {"opd": "OPD policy"}
  assert verdict(distilled).endswith("is level with the OPD policy that it started from and its cross-entropy control.")


def test_comparisons_stand_in_a_line_each_with_their_intervals():
  lift, even, worse = "+25.0 % [5.0, 45.0]", "+25.0 % [-5.0, 55.0]", "-25.0 % [-45.0, -5.0]"
  assert list_comparisons(of_two_lines()) == [
    f"The direct policy is above the upstream order: R@1 {lift}, N@3 {lift}.",
    f"The direct policy is above LambdaMART: R@1 {lift}, N@3 {lift}.",
    f"The direct policy is level with LambdaMART (all facts): R@1 {even}, N@3 {even}.",
    f"The direct policy is behind the Bayes order, which no ranker is above in expectation: R@1 {worse}, N@3 {worse}.",
    f"The RL policy is above the upstream order: R@1 {lift}, N@3 {lift}.",
    f"The RL policy is above the SFT policy that it started from: R@1 {lift}, N@3 {lift}.",
    f"The RL policy is level with its cross-entropy control, trained by supervision on the same labels: R@1 {even}, N@3 {even}.",
    f"The direct policy is level with the RL policy: R@1 {even}, N@3 {even}.",
  ]
  named = of_two_lines() | {"titles": {"policy": "a|b", "direct": "direct policy"}}
  assert list_comparisons(named, escape_markdown)[-1].startswith(r"The direct policy is level with the a\|b: ")
