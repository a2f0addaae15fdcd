"""Published figures stand beside what was measured of the same, each with its source, and beside nothing else."""

import pytest

from gr2_jax.reports.published import PUBLISHED, published_in_run, published_in_sweep


def lift(relative):
  return {"delta": relative / 2, "delta_ci95": [0.0, relative], "relative": relative, "ci95": [0.0, 2 * relative]}


def rows(table):
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")][1:]


def test_every_figure_names_a_paper():
  for figures in PUBLISHED.values():
    assert all("https://arxiv.org/abs/" in figure.source and figure.value for figure in figures)


def test_a_run_stands_beside_the_headline():
  paired = {
    name: {"recall@1": lift(0.1), "recall@3": lift(0.2), "ndcg@3": lift(0.3)} for name in ("policy_vs_upstream", "direct_vs_upstream")
  }
  found = rows(published_in_run("main", {"dataset": "market", "paired": paired}))
  assert [(row[0][:3], row[1], row[4]) for row in found] == [
    ("R@1", "+18.7 %", "+10.0 % [0.0, 20.0]"),
    ("R@3", "+7.1 %", "+20.0 % [0.0, 40.0]"),
    ("N@3", "+9.6 %", "+30.0 % [0.0, 60.0]"),
  ]


@pytest.fixture
def sweep():
  line = {"order": "a/direct", "base": "a/policy", "paired": {"recall@1": lift(0.5)}}
  across = line | {"order": "b/direct"}  # of two variants: not what the figure is of
  compressed = {
    "paired": {"policy_compressed_rules_vs_policy": {"recall@3": lift(0.1), "ndcg@3": lift(0.1)}},
    "cost": {"policy": {"prompt_tokens": 200.0}, "policy_compressed_rules": {"prompt_tokens": 30.0}},
  }
  return {
    "variants": {
      "a": {"paired": {"sft_vs_upstream": {"recall@1": lift(-0.2)}}, "compressed": {}},
      "b": {"paired": {}, "compressed": compressed},
    },
    "comparisons": {"asked": [line, across]},
    "shares": [
      {"order": "a/opd", "recall@1": {"share": 0.8, "ci95": [0.7, 0.9]}},
      {"order": "a/policy", "recall@1": {"share": 0.5, "ci95": [0.4, 0.6]}},
      {"order": "b/opd", "recall@1": {"share": None, "ci95": None}},
    ],
  }


def test_variants_of_a_sweep_stand_beside_their_figure(sweep):
  assert [row[3:] for row in rows(published_in_sweep("internalise", sweep))] == [["a", "+50.0 % [0.0, 100.0]"]]
  opd, sft, rl = rows(published_in_sweep("prior", sweep))
  assert opd[1:2] + opd[3:] == ["82 %", "a", "R@1 80 % [70, 90]"]
  assert sft[3:] == ["a", "-20.0 % [0.0, -40.0]"] and rl[3:] == ["–", "not measured here"]
  assert next(row[3:] for row in rows(published_in_sweep("compressor", sweep))) == ["b, rules", "85 %"]


def test_a_study_without_a_published_figure_says_so(sweep):
  assert published_in_sweep("pruning", sweep) == "No paper gives a figure for this study that could be read."
