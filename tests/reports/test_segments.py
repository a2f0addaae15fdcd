"""Segments on the card: a table a dimension, groups that are too small told, and what older files lack."""

import numpy as np
import pytest

from gr2_jax.evaluation.results import RankerAnswers, build_results
from gr2_jax.reports.segments import FEWEST, segments_section

N, K = 120, 5


def make_results(**changes):
  rng = np.random.default_rng(0)
  natural, labels = np.tile(np.arange(K), (N, 1)), np.eye(K, dtype=int)[rng.integers(K, size=N)]
  rankings = {"upstream": natural, "lambdamart": rng.permuted(natural, axis=1), "policy": np.argsort(-labels, axis=1, kind="stable")}
  return build_results(
    dataset="toy",
    seeds=[0],
    labels=labels,
    rankers={name: RankerAnswers.of(of) for name, of in rankings.items()},
    titles={"policy": "RL policy"},
    pairs=[("policy", "lambdamart")],
    resamples=200,
    **changes,
  )


def halves(size):
  return np.arange(N) < size


def test_groups_have_a_row_each_with_the_policy_beside_trees_and_upstream():
  results = make_results(buckets={"history_length": {"1 to 5": halves(70), "6 to 10": ~halves(70)}})
  text = segments_section(results)
  head = "| history length | slates | upstream order | LambdaMART | RL policy | RL policy over upstream order | RL policy over LambdaMART |"
  assert head in text
  of = results["buckets"]["history_length"]["1 to 5"]
  row = next(line for line in text.splitlines() if line.startswith("| 1 to 5 | 70 |"))
  low, high = (100 * x for x in of["paired"]["policy_vs_lambdamart"]["ndcg@3"]["ci95"])
  assert f"| {of['orders']['upstream']['ndcg@3']:.4f} |" in row and "| 1.0000 |" in row and f"[{low:.1f}, {high:.1f}] |" in row
  assert "| 6 to 10 | 50 |" in text and "Too few" not in text and "history length: items of" in text


@pytest.mark.parametrize(("size", "shown"), [(FEWEST, True), (FEWEST - 1, False)])
def test_small_groups_are_named_and_not_shown(size, shown):
  results = make_results(buckets={"target_popularity": {"head": ~halves(size), "tail": halves(size)}})
  text = segments_section(results)
  assert ("| tail |" in text) == shown and (f"Too few slates: tail ({size})." in text) != shown and "| head |" in text


def test_where_every_group_is_small_a_sentence_says_so():
  results = make_results(buckets={"day": {"same_day": halves(3), "different_day": halves(2)}})
  assert segments_section(results) == f"Fewer than {FEWEST} slates in every group of day: same day (3), different day (2)."


def test_segments_and_subsets_are_dimensions_too():
  days = ["same_day"] * 60 + ["different_day"] * 60
  text = segments_section(make_results(segments=days, subsets={"unseen_users": halves(60), "reasoning_hard": halves(60)}))
  assert (
    "| day | slates |" in text and "| same day | 60 |" in text and "| seen before | slates |" in text and "| unseen users | 60 |" in text
  )
  assert "reasoning hard" not in text
  own = segments_section(make_results(segments=["mobile|x"] * N))
  assert "| segment | slates |" in own and r"| mobile\|x | 120 |" in own


def test_an_older_file_says_what_it_lacks():
  older = make_results(segments=["same_day"] * N)
  del older["buckets"]
  text = segments_section(older)
  assert "| same day | 120 |" in text and text.endswith("were not measured in this run, which is older than they are.")
  assert segments_section(make_results()) == "The slates were not grouped."
