"""The card's first line: who beats whom, and where that is not known."""

import pytest

from gr2_jax.reports.verdict import verdict

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
  ("upstream", "start"),
  [
    ((BETTER, BETTER), "The RL policy beats the upstream order: R@1 +25.0 % [5.0, 45.0], N@3 +25.0 % [5.0, 45.0]."),
    ((WORSE, WORSE), "The RL policy loses to the upstream order: R@1 -25.0 % [-45.0, -5.0], "),
    ((EVEN, EVEN), "The RL policy is not told apart from the upstream order: R@1 +25.0 % [-5.0, 55.0] (within its interval), "),
    ((BETTER, EVEN), "The RL policy against the upstream order: R@1 +25.0 % [5.0, 45.0], N@3 +25.0 % [-5.0, 55.0] (within its interval)."),
    ((BETTER, WORSE), "The RL policy against the upstream order: "),
    (
      (ALONE, ALONE),
      "The RL policy is not told apart from the upstream order: R@1 +25.0 % [one user], N@3 +25.0 % [one user]. [one user]: ",
    ),
  ],
)
def test_the_policy_against_the_upstream_order(upstream, start):
  assert told(*upstream).startswith(start)


def test_the_policy_against_trees():
  assert told(BETTER, BETTER, trees=WORSE).endswith(". It loses to LambdaMART: R@1 -25.0 % [-45.0, -5.0], N@3 -25.0 % [-45.0, -5.0].")
  assert " It beats LambdaMART: " in told(EVEN, EVEN, trees=BETTER)


def test_a_policy_below_the_model_that_it_began_as_is_told_so():
  assert " It loses to the mid-trained model asked for the next item alone: R@1 -25.0 %" in told(BETTER, BETTER, start=WORSE)
  assert "mid-trained" not in told(BETTER, BETTER, start=BETTER)


def test_what_was_not_compared_is_not_judged():
  assert verdict({"orders": {"upstream": {}}, "paired": {}}) == "No policy was measured in this run."
  assert "were not compared" in verdict({"orders": {"upstream": {}, "policy": {}}, "paired": {}})


def test_the_line_that_validation_chose_is_told_of_and_what_rl_adds():
  pair = {"recall@1": BETTER, "ndcg@3": BETTER}
  even = {"recall@1": EVEN, "ndcg@3": EVEN}
  titles = {"policy": "RL policy", "sft": "SFT policy", "direct": "direct policy", "rl_control": "cross-entropy control"}
  results = {
    "orders": {"upstream": {}, "policy": {}, "direct": {}, "sft": {}},
    "titles": titles,
    "main_line": "direct",
    "paired": {
      "direct_vs_upstream": pair,
      "direct_vs_lambdamart": pair,
      "direct_vs_lambdamart_all": even,
      "policy_vs_upstream": pair,
      "policy_vs_sft": pair,
      "policy_vs_rl_control": even,
    },
  }
  text = verdict(results)
  assert text.startswith("The direct policy, chosen on validation slates before the RL policy, beats the upstream order: R@1 +25.0 %")
  parts = (
    "It beats LambdaMART: R@1",
    "It is not told apart from LambdaMART, all facts: ",
    "The RL policy beats the SFT policy that it started",
  )
  assert [part in text for part in parts] == [True] * 3
  assert (
    text.endswith("N@3 +25.0 % [-5.0, 55.0] (within its interval).") and "It is not told apart from its cross-entropy control: " in text
  )
  alone = verdict(results | {"main_line": "policy"})
  assert alone.startswith("The RL policy beats the upstream order") and "chosen" not in alone
  distilled = results | {"priors": ["opd", "sft"], "paired": results["paired"] | {"policy_vs_opd": even}}
  distilled["titles"] = titles | {"opd": "OPD policy"}
  assert "The RL policy is not told apart from the OPD policy that it started from" in verdict(distilled)
