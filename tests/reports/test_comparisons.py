"""Any two rankers of an ablation's variants, shares of a teacher's gain, and acceptance by rank, from made-up numbers."""

import numpy as np
import pytest
from scipy import stats

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.paired import paired_bootstrap, share_of_gain
from gr2_jax.evaluation.per_slate import PerSlate
from gr2_jax.reports.comparisons import (
  compare_variants,
  comparison_sections,
  compute_fronts,
  compute_shares,
  count_acceptance,
  pool_rankers,
  wilson_interval,
)
from gr2_jax.runs.run_file import RunRecord

N = 400


def _tested(seed, users=None, **rates):
  """Slates on which each ranker is right at its rate, by the same luck: a better one is right wherever a worse one is."""
  luck = np.random.default_rng(seed).random(N)
  rankers = {name: {metric: (luck < rate).astype(float) for metric in METRICS} for name, rate in rates.items()}
  return PerSlate(np.array(users or [f"u{i}" for i in range(N)]), np.ones(N), rankers)


@pytest.fixture
def tested():
  return {
    "teacher": {seed: _tested(seed, upstream=0.3, policy=0.5) for seed in (0, 1)},
    "opd": {seed: _tested(seed, upstream=0.3, opd=0.4, policy=0.45) for seed in (0, 1)},
    "none": {0: _tested(0, upstream=0.3, policy=0.3)},
    "elsewhere": {0: _tested(0, users=[f"other{i}" for i in range(N)], upstream=0.3, policy=0.3)},
  }


def test_rankers_of_two_variants_are_pooled_over_the_seeds_that_both_have(tested):
  of, clusters, _ = pool_rankers(tested, ("opd/policy", "opd/upstream"))
  assert len(clusters) == len(of["opd/policy"]["mrr"]) == len(of["opd/upstream"]["mrr"]) == 2 * N and len(set(clusters)) == 2 * N
  of, clusters, _ = pool_rankers(tested, ("opd/policy", "none/policy"))
  assert len(clusters) == N and clusters[0] == "0/u0"
  np.testing.assert_array_equal(of["opd/policy"]["mrr"], tested["opd"][0].rankers["policy"]["mrr"])
  assert pool_rankers(tested, ("opd/policy", "elsewhere/policy")) is None, "other slates"
  assert pool_rankers(tested, ("opd/policy", "absent/policy")) is None
  assert pool_rankers(tested, ("opd/sft", "opd/policy")) is None


def test_comparisons_are_those_of_the_paired_bootstrap(tested):
  found = compare_variants(tested, {"a": [("opd/policy", "opd/opd"), ("absent/sft", "opd/opd")], "b": [("absent/sft", "opd/opd")]}, 300)
  assert list(found) == ["a"] and len(found["a"]) == 1
  (line,) = found["a"]
  metrics, clusters, _ = pool_rankers(tested, ("opd/policy", "opd/opd"))
  of, base = metrics["opd/policy"], metrics["opd/opd"]
  expected = paired_bootstrap(of["mrr"], base["mrr"], seed=0, resamples=300, clusters=clusters)
  assert line["n"] == 2 * N and line["values"]["mrr"] == of["mrr"].mean()
  assert (line["paired"]["mrr"]["delta"], *line["paired"]["mrr"]["delta_ci95"]) == pytest.approx(
    (expected.delta[0], expected.delta_low[0], expected.delta_high[0])
  )


def test_the_share_of_a_gain(tested):
  found = {of["order"]: of["mrr"] for of in compute_shares(tested, {"teacher/policy": ["opd/opd", "opd/policy", "absent/opd"]}, 500)}
  assert list(found) == ["opd/opd", "opd/policy"]
  for name, expected in {"opd/opd": 0.5, "opd/policy": 0.75}.items():
    low, high = found[name]["ci95"]
    assert low < expected < high and found[name]["share"] == pytest.approx(expected, abs=0.1) and high - low < 0.3


def test_a_share_interval_covers_the_truth_as_often_as_it_says():
  covered = 0
  for seed in range(200):
    luck = np.random.default_rng(seed).random((300, 1))
    student, teacher, base = ((luck < rate).astype(float) for rate in (0.45, 0.6, 0.3))
    of = share_of_gain(student, teacher, base, seed=seed, resamples=200)
    covered += bool(of.low[0] <= 0.5 <= of.high[0])
  assert 0.9 < covered / 200 < 0.99


def test_a_share_of_a_gain_that_may_be_none_is_undefined():
  rng = np.random.default_rng(0)
  student, teacher, base = rng.random((3, 50, 1))
  assert np.isnan(share_of_gain(student, teacher, base, seed=0, resamples=200)).all()
  tested = {"teacher": {0: _tested(0, upstream=0.3, policy=0.3)}}
  (of,) = compute_shares(tested, {"teacher/policy": ["teacher/policy"]}, 100)
  assert of["mrr"] == {"share": None, "ci95": None}


def test_acceptance_adds_up_over_runs_and_counts_shared_traces_once():
  def run(fingerprint, sampling, asked, accepted):
    report = {"sampling": sampling, "asked_by_upstream_rank": asked, "accepted_by_upstream_rank": accepted}
    return RunRecord({}, {}, "", {"traces": {"fingerprint": fingerprint}}, {}, {}, {}, report)

  runs = [
    run("x", "rejection", [4, 2], [3, 1]),
    run("x", "rejection", [4, 2], [3, 1]),
    run("y", "rejection", [1, 1, 5], [1, 0, 2]),
    run("z", "targeted", [3], [3]),
    RunRecord({}, {}, "", {}, {}, {}, {}),
  ]
  acceptance = count_acceptance(runs)
  assert acceptance == {"rejection": {"asked": [5, 3, 5], "accepted": [4, 1, 2]}, "targeted": {"asked": [3], "accepted": [3]}}
  text = comparison_sections({"comparisons": {}, "shares": [], "acceptance": acceptance})["Which slates have an accepted trace"]
  low, high = wilson_interval(4, 5)
  assert f"| 1 | 0.800 [{low:.3f}, {high:.3f}] of 5 | 1.000 [0.439, 1.000] of 3 |" in text
  # (5 + 2 * 3 + 3 * 5) / 13 and (4 + 2 + 3 * 2) / 7.
  assert "rejection: 2.00 of all, 1.71 of the accepted; targeted: 1.00 of all" in text


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 7), (50, 50)])
def test_wilson_interval(successes, trials):
  expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
  assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_tables(tested):
  sweep = {
    "comparisons": compare_variants(tested, {"RL after OPD": [("opd/policy", "none/policy")]}, 200),
    "shares": compute_shares(tested, {"teacher/policy": ["opd/opd"], "none/policy": ["none/policy"]}, 200),
    "acceptance": {},
    "titles": {"policy": "RL policy"},
  }
  sections = comparison_sections(sweep | {"shown": {"RL after OPD": ["mrr"]}})
  assert "| MRR | difference |" in sections["RL after OPD"] and "N@3" not in sections["RL after OPD"]
  sections = comparison_sections(sweep)
  assert list(sections) == ["RL after OPD", "Share of the teacher's gain that a student keeps"]
  assert "| opd: RL policy | none: RL policy | 400 |" in sections["RL after OPD"]
  share = sweep["shares"][0]["recall@1"]
  assert f"{100 * share['share']:.0f} % [{100 * share['ci95'][0]:.0f}, " in sections["Share of the teacher's gain that a student keeps"]
  assert "| none: RL policy | none: RL policy | – |" in sections["Share of the teacher's gain that a student keeps"]


def test_fronts_are_means_over_all_seeds_of_the_rankers_that_have_both_metrics(tested):
  series = {"ours": ["opd/policy", "absent/policy"], "theirs": ["opd/upstream"], "none": ["absent/policy"]}
  fronts = compute_fronts(tested, {"a front": {"axes": ("recall@1", "mrr"), "series": series}})
  assert list(fronts["a front"]["series"]) == ["ours", "theirs"]
  (point,) = fronts["a front"]["series"]["ours"]
  assert point["order"] == "opd/policy"
  assert point["mrr"] == pytest.approx(np.concatenate([of.rankers["policy"]["mrr"] for of in tested["opd"].values()]).mean())
  assert compute_fronts(tested, {"a front": {"axes": ("recall@1", "brands@3"), "series": series}}) == {}
  table = comparison_sections({"comparisons": {}, "shares": [], "acceptance": {}, "fronts": fronts})["a front"]
  assert f"| ours | opd: policy | {point['recall@1']:.4f} |" in table
