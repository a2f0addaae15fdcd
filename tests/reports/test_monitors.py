"""Monitors in plain words: a sentence for each threshold that a policy passes, and nothing for honest rankers."""

import numpy as np
import pytest

from gr2_jax.evaluation.results import Answers, RankerAnswers, build_results
from gr2_jax.reports.monitors import NOTHING, list_suspicions, monitors_section

N, K = 400, 8
NATURAL = np.tile(np.arange(K), (N, 1))


def by(scores):
  return np.argsort(-scores, axis=1, kind="stable")


def make_results(answer, size=K, n=N, **changes):
  """Of a policy `answer(shown, scores) -> rankings`; scores are the label and noise, and targets stand ahead rather than behind."""
  rng = np.random.default_rng(0)
  natural = np.tile(np.arange(size), (n, 1))
  labels = np.eye(size, dtype=int)[np.minimum(rng.geometric(0.35, n) - 1, size - 1)]
  shuffled, scores = rng.permuted(natural, axis=1), 2 * labels + rng.normal(size=(n, size))
  answers = {name: Answers(answer(shown, scores), shown, [None] * n) for name, shown in (("upstream", natural), ("shuffled_1", shuffled))}
  rankers = {
    "upstream": RankerAnswers.of(natural),
    "random": RankerAnswers.of(rng.permuted(natural, axis=1)),
    "bayes": RankerAnswers.of(rng.permuted(natural, axis=1)),
    "policy": RankerAnswers(answers),
  }
  return build_results(dataset="toy", seeds=[0], labels=labels, rankers=rankers, titles={"policy": "RL policy"}, resamples=200, **changes)


def places(shown):
  """At which place each candidate is shown."""
  return np.argsort(shown, axis=1)


def test_an_honest_ranker_is_not_suspected_however_few_the_slates():
  for size, n in ((K, N), (2, 40), (3, 40), (K, 24)):
    assert list_suspicions(make_results(lambda shown, scores: by(scores), size, n)) == []
  text = monitors_section(make_results(lambda shown, scores: by(scores)))
  assert text.startswith(f"- {NOTHING}") and "| RL policy | 1.000 |" in text


def test_a_copy_of_what_is_shown_is_called_one():
  found = list_suspicions(make_results(lambda shown, scores: shown))
  assert found[0] == "RL policy: 1.00 of its answers repeat the order that it was given: it copies."
  assert found[1].startswith("RL policy: top-1 share of place 1 is 1.00, where .3") and found[1].endswith("it copies the input order.")
  assert "shown shuffled 1, top-1 share of place 1 is 1.00, where chance gives .1" in found[2]
  assert "agreement is " in found[3] and "R@1 falls from " in found[4] and len(found) == 5


def test_a_copy_but_for_one_swap_and_an_order_that_hardly_differs():
  def swap(shown, scores, *pairs):
    rankings = shown.copy()
    for one, other in pairs:
      rankings[:, [one, other]] = rankings[:, [other, one]]
    return rankings

  near = list_suspicions(make_results(lambda shown, scores: swap(NATURAL, scores, (6, 7))))
  assert "the order that it was given but for one swap at most: it nearly copies." in near[0]
  alike = list_suspicions(make_results(lambda shown, scores: swap(NATURAL, scores, (1, 2), (5, 6))))
  assert "its orders hardly differ from the upstream order: τ is .86, and 1 is the same order." in alike[0]


def test_a_habit_of_another_place_is_told_where_candidates_are_shuffled():
  def prefer_third(shown, scores):
    return by(scores + 1.5 * (places(shown) == 2))

  found = list_suspicions(make_results(prefer_third))
  assert any("shown shuffled 1, top-1 share of place 3 is " in line and "goes by the place and not by the items" in line for line in found)
  assert not any("copies" in line for line in found)


def test_invalid_answers_are_counted_by_kind():
  results = make_results(lambda shown, scores: by(scores))
  results["diagnostics"]["policy"] |= {"valid_rate": 0.95, "errors": {"missing": 0.04, "repeated": 0.01, "overlong": 0.0}}
  assert list_suspicions(results) == ["RL policy: 5.0% of its answers are no order of the candidates (missing 4.0%, repeated 1.0%)."]
  results["diagnostics"]["policy"] |= dict.fromkeys(("identity_rate", "near_identity_rate", "permutation_consistency"), None)
  assert len(list_suspicions(results | {"presentations": {}})) == 1  # where no answer is valid, nothing else is asked


def test_a_policy_above_the_ceiling_may_know_the_labels():
  found = list_suspicions(make_results(lambda shown, scores: by(scores), pairs=[("policy", "bayes")]))
  assert found == ["RL policy: it is above the Bayes order in R@1 and N@3, which no ranker is in expectation: it may know the labels."]


@pytest.mark.parametrize("reasons", [{}, {"policy": {"true": {"share": None}, "named_first": {"share": 0.5}}}])
def test_reasonings_are_warned_of_beside_orders(reasons):
  results = make_results(lambda shown, scores: by(scores)) | {"reasons": reasons}
  text = monitors_section(results)
  assert NOTHING in text and ("- Reasonings that are no reasons to rely on: RL policy: 50 % name" in text) == bool(reasons)


def test_a_file_without_titles_has_no_policy_to_suspect():
  results = make_results(lambda shown, scores: shown)
  del results["titles"]
  assert list_suspicions(results) == [] and monitors_section(results).startswith("- No policy was measured.")
