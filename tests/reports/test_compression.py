"""Compressed histories in results, card and sweep: against the policy on full ones, in pairs, over the slates of all seeds."""

import numpy as np
import pytest

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.per_slate import load_per_slate, write_per_slate
from gr2_jax.evaluation.results import Answers, RankerAnswers, build_results, measure_rankers
from gr2_jax.reports.compression import compressed_rankers, compression_table, pool_compressed

N, K = 60, 5
PAIRS = [("policy_compressed_rules", "policy"), ("policy_compressed_soft_tokens", "policy")]


def make(seed):
  """Labels, and rankers by a policy that sees them through noise: full histories, and shorter ones with more noise."""
  rng = np.random.default_rng(seed)
  labels = np.eye(K, dtype=int)[rng.integers(K, size=N)]

  def order(skill, tokens):
    rankings = np.argsort(-(skill * labels + rng.normal(size=labels.shape)), axis=1)
    return RankerAnswers({"upstream": Answers(rankings)}, {"prompt_tokens": tokens, "prefill_ms": tokens / 100, "ms_per_slate": 3.0})

  rankers = {"upstream": RankerAnswers.of(np.tile(np.arange(K), (N, 1))), "policy": order(3.0, 400.0 + seed)}
  return labels, rankers | {"policy_compressed_rules": order(3.0, 60.0), "policy_compressed_soft_tokens": order(0.5, 40.0)}


def test_differences_are_to_full_histories():
  labels, rankers = make(0)
  results = build_results(dataset="toy", seeds=[0], labels=labels, rankers=rankers, pairs=PAIRS, resamples=200)
  assert compressed_rankers(results["orders"]) == ["policy_compressed_rules", "policy_compressed_soft_tokens"]
  for name in ("rules", "soft_tokens"):
    of = results["paired"][f"policy_compressed_{name}_vs_policy"]["ndcg@3"]
    expected = results["orders"][f"policy_compressed_{name}"]["ndcg@3"] - results["orders"]["policy"]["ndcg@3"]
    assert of["delta"] == pytest.approx(expected)
  lines = compression_table(results["orders"], results["paired"], results["cost"]).splitlines()
  full, rules, soft = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("full", "rules", "soft_tokens"))
  assert "| 400.0 | 100.0 % |" in full and "| 60.0 | 15.0 % |" in rules and "| 0.60 |" in rules
  assert "| -" in soft and full.count("|  |") == 2 and "ms per slate" not in lines[0]  # no difference to itself


def test_slates_of_all_seeds_are_pooled(tmp_path):
  tested, results = {}, []
  for seed in (0, 1):
    labels, rankers = make(seed)
    users = [f"u{n}" for n in range(N)]
    results.append(build_results(dataset="toy", seeds=[seed], labels=labels, rankers=rankers, pairs=PAIRS, users=users, resamples=20))
    write_per_slate(tmp_path / f"{seed}.npz", measure_rankers(rankers, labels), users)
    tested[seed] = load_per_slate(tmp_path / f"{seed}.npz")
  of = pool_compressed(tested, results, 200)
  for name in of["orders"]:
    for metric in METRICS:
      assert of["orders"][name][metric] == pytest.approx(np.mean([r["orders"][name][metric] for r in results]))
  assert of["cost"]["policy"]["prompt_tokens"] == 400.5
  assert set(of["paired"]) == {"policy_compressed_rules_vs_policy", "policy_compressed_soft_tokens_vs_policy"}
  assert of["paired"]["policy_compressed_soft_tokens_vs_policy"]["ndcg@3"]["delta_ci95"][1] < 0
  assert "| soft_tokens |" in compression_table(**of)


def test_nothing_where_nothing_was_compressed(tmp_path):
  labels, rankers = make(0)
  rankers = {name: of for name, of in rankers.items() if "compressed" not in name}
  write_per_slate(tmp_path / "0.npz", measure_rankers(rankers, labels), [f"u{n}" for n in range(N)])
  assert pool_compressed({0: load_per_slate(tmp_path / "0.npz")}, [{}], 20) == {}
  assert compression_table({"policy": {}}, {}, {}) == "No histories were compressed in this run."
