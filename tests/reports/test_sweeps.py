"""A sweep's numbers from made-up runs: pooled over seeds, compared in pairs, and written down."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from gr2_jax.evaluation.paired import paired_bootstrap
from gr2_jax.evaluation.per_slate import load_per_slate, write_per_slate
from gr2_jax.evaluation.results import Answers, RankerAnswers, ResultsError, build_results, measure_rankers, write_results
from gr2_jax.reports.comparisons import comparison_differences
from gr2_jax.reports.sentences import describe_sweep
from gr2_jax.reports.sweeps import (
  build_sweep,
  load_sweep,
  render_sweep_table,
  sweep_tables,
  write_sweep,
)
from gr2_jax.reports.tables import ONE_USER_NOTE
from gr2_jax.runs.run import Run
from gr2_jax.runs.run_file import read_run

N, K = 40, 5
TITLES = {"sft": "SFT policy", "policy": "RL policy"}
CHANGES = {"naive_upstream": {"rl.reward.condition": "naive"}, "relative_shuffled": {"rl.reward.condition": "relative"}}


def make_run(folder, seed, skill, copying, users=None):
  """A finished run's files: a policy that sees the labels through noise, and copy rates that rise by `copying` over 20 steps."""
  labels = np.eye(K, dtype=int)[np.random.default_rng(seed).integers(K, size=N)]
  rng = np.random.default_rng(100 + seed)
  natural = np.tile(np.arange(K), (N, 1))

  def guess(strength):
    return np.argsort(-(strength * labels + rng.normal(size=(N, K))), axis=1)

  shown = {"upstream": natural, "shuffled_1": rng.permuted(natural, axis=1)}
  rankers = {"upstream": RankerAnswers.of(natural), "sft": RankerAnswers.of(guess(0.5))}
  rankers["policy"] = RankerAnswers({name: Answers(guess(skill), order, [None] * N) for name, order in shown.items()})
  users = [f"u{i}" for i in range(N)] if users is None else users
  write_results(
    folder / "evaluation" / "results.json",
    build_results(
      dataset="toy", seeds=[seed], labels=labels, rankers=rankers, users=users, titles=TITLES, priors=["opd", "sft"], resamples=50
    ),
  )
  write_per_slate(folder / "evaluation" / "per_slate.npz", measure_rankers(rankers, labels), users)
  for stage, fingerprint in (("sft", f"sft {seed}"), ("rl", f"{folder}")):
    (folder / stage).mkdir()
    (folder / stage / "done.json").write_text(json.dumps({"fingerprint": fingerprint, "seconds": 60.0}))
  (folder / "config.json").write_text(json.dumps({"seed": seed}))
  (folder / "versions.json").write_text(json.dumps({"jax": "0.10.2", "git_commit": None}))
  (folder / "command.txt").write_text("2026-01-01T00:00:00Z python -m experiments.sweep\n2026-01-01T00:00:00Z # jax: 1 -> 2\n")
  (folder / "metrics").mkdir()
  lines = [{"step": s, "identity_rate": copying * s / 20, "near_identity_rate": 0.5, "recall@1": 0.3} for s in range(1, 21)]
  (folder / "metrics" / "rl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def read(runs):
  return {variant: {seed: read_run(Run.open(folder)) for seed, folder in of.items()} for variant, of in runs.items()}


@pytest.fixture
def runs(tmp_path):
  settings = {"naive_upstream": (0.5, 0.8), "relative_shuffled": (3.0, 0.0)}
  return {
    variant: {seed: make_run(tmp_path / variant / f"seed_{seed}", seed, *settings[variant]) for seed in (0, 1)} for variant in settings
  }


def test_slates_of_all_seeds_are_pooled_and_users_of_two_seeds_are_two_users(runs):
  sweep = build_sweep(read(runs), CHANGES, resamples=300)
  of = sweep["variants"]["relative_shuffled"]
  assert of["n"] == 2 * N and of["seeds"] == [0, 1] and of["changes"] == {"rl.reward.condition": "relative"}
  tables = [load_per_slate(runs["relative_shuffled"][seed] / "evaluation" / "per_slate.npz") for seed in (0, 1)]
  policy, upstream = (np.concatenate([t.rankers[name]["recall@1"] for t in tables]) for name in ("policy", "upstream"))
  assert of["orders"]["policy"]["recall@1"] == policy.mean()
  # Both seeds have users u0..u39; as 40 users of two slates each the interval would be another one.
  apart = paired_bootstrap(policy, upstream, seed=0, resamples=300, clusters=np.array([f"{s}/u{i}" for s in (0, 1) for i in range(N)]))
  lift = of["paired"]["policy_vs_upstream"]["recall@1"]
  assert (lift["delta"], *lift["delta_ci95"]) == pytest.approx((apart.delta[0], apart.delta_low[0], apart.delta_high[0]))


def test_variants_are_compared_with_the_first_where_they_were_tested_on_the_same_slates(runs, tmp_path):
  sweep = build_sweep(read(runs), CHANGES, resamples=300)
  first, second = sweep["variants"].values()
  assert sweep["reference"] == "naive_upstream" and "policy_vs_reference" not in first["paired"]
  difference = second["paired"]["policy_vs_reference"]["recall@1"]
  assert difference["delta"] == pytest.approx(second["orders"]["policy"]["recall@1"] - first["orders"]["policy"]["recall@1"])
  assert difference["delta_ci95"][0] > 0
  runs["relative_shuffled"][1] = make_run(tmp_path / "other", 1, 3.0, 0.0, users=[f"stranger{i}" for i in range(N)])
  assert "policy_vs_reference" not in build_sweep(read(runs), CHANGES, resamples=50)["variants"]["relative_shuffled"]["paired"]


def test_the_prior_is_the_latest_that_the_runs_name(runs):
  of = build_sweep(read(runs), CHANGES, resamples=50)["variants"]["relative_shuffled"]
  assert of["priors"] == ["sft"] and list(of["orders"]) == ["upstream", "sft", "policy"] and "policy_vs_sft" in of["paired"]
  for run in runs["relative_shuffled"].values():
    path = run / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"priors": []}))
  assert build_sweep(read(runs), CHANGES, resamples=50)["variants"]["relative_shuffled"]["priors"] == []
  for run in runs["relative_shuffled"].values():
    path = run / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in results.items() if key not in ("priors", "titles")}))
  assert build_sweep(read(runs), CHANGES, resamples=50)["variants"]["relative_shuffled"]["priors"] == ["sft"]


def test_slates_count_by_their_weights(runs):
  for run in runs["naive_upstream"].values():
    path = run / "evaluation" / "per_slate.npz"
    with np.load(path) as arrays:
      np.savez(path, **{name: arrays[name] for name in arrays} | {"weights": np.arange(1.0, N + 1)})
  tables = [load_per_slate(run / "evaluation" / "per_slate.npz") for run in runs["naive_upstream"].values()]
  expected = np.mean([np.average(table.rankers["policy"]["mrr"], weights=np.arange(1.0, N + 1)) for table in tables])
  asked = {"title": [("naive_upstream/policy", "naive_upstream/sft")]}
  sweep = build_sweep(read(runs), CHANGES, resamples=50, comparisons=asked)
  assert sweep["variants"]["naive_upstream"]["orders"]["policy"]["mrr"] == pytest.approx(expected)
  assert sweep["comparisons"]["title"][0]["values"]["mrr"] == pytest.approx(expected)


def test_copying_is_told_for_the_first_and_the_last_tenth_of_training_and_both_presentations(runs):
  of = build_sweep(read(runs), CHANGES, resamples=50)["variants"]["naive_upstream"]
  # 0.8 s / 20 at steps 1, 2 and 19, 20 of 20, in both seeds.
  assert of["training"]["identity_rate"] == pytest.approx({"first": 0.8 * 3 / 40, "last": 0.8 * 39 / 40})
  assert of["training"]["near_identity_rate"] == {"first": 0.5, "last": 0.5}
  for shown in ("upstream", "shuffled_1"):
    results = [json.loads((run / "evaluation" / "results.json").read_text()) for run in runs["naive_upstream"].values()]
    monitors = [r["diagnostics"]["policy"] if shown == "upstream" else r["diagnostics"]["policy"][shown] for r in results]
    at = of["evaluation"][shown]
    for name in ("near_identity_rate", "kendall_tau_to_upstream"):
      assert at[name] == pytest.approx(np.mean([m[name] for m in monitors]))
    assert at["recall@1"] == pytest.approx(np.mean([r["presentations"]["policy"][shown]["recall@1"] for r in results]))
    assert at["valid_rate"] == 1


ASKED = {"What the condition changes": [("relative_shuffled/policy", "naive_upstream/policy")]}


def test_the_page_the_plots_and_the_console_table(runs, tmp_path):
  sweep = build_sweep(read(runs), CHANGES, resamples=50, comparisons=ASKED)
  page = write_sweep(tmp_path, read(runs), sweep)
  assert json.loads((tmp_path / "sweep.json").read_text()) == sweep
  text = page.read_text(encoding="utf-8")
  assert f"{sweep['variants']['relative_shuffled']['orders']['policy']['recall@1']:.4f}" in text
  assert "0.060 → 0.780" in text and "`rl.reward.condition = relative`" in text and "80 test slates of 2 seeds" in text
  assert (
    text.startswith(f"# Sweep {tmp_path.name}: toy\n")
    and "mean of 2 seeds" in text
    and "(n = 80)" in "".join(comparison_differences(sweep)["What the condition changes"])
  )
  # Two SFT stages, each shared by two runs, and four RL stages, of a minute each.
  assert "6 minutes of stages" in text and text.count("python -m experiments.sweep") == 1
  for name in ("copying.png", "policies.png", "comparisons.png"):
    assert f"](plots/{name})" in text and (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
  console = Console(file=io.StringIO(), width=80)
  console.print(render_sweep_table(sweep))
  told = console.file.getvalue()
  assert "relative shuffled" in told and "6→78" in told and "…" not in told and "slates of 2 seeds" in told


def test_one_seed_of_one_user_is_told(tmp_path):
  runs = {variant: {0: make_run(tmp_path / variant, 0, 1.0, 0.0, users=["u"] * N)} for variant in CHANGES}
  sweep = build_sweep(read(runs), CHANGES, resamples=50, comparisons=ASKED, shares={"naive_upstream/policy": ["relative_shuffled/sft"]})
  text = write_sweep(tmp_path, read(runs), sweep).read_text(encoding="utf-8")
  assert "slates of 1 seed," in text and "[one user]" in text and ONE_USER_NOTE in text
  assert sweep["shares"][0]["mrr"] == {"share": None, "ci95": None}
  console = Console(file=io.StringIO(), width=80)
  console.print(render_sweep_table(sweep))
  assert "[one user]" in console.file.getvalue() and "slates of 1 seed" in console.file.getvalue()


def test_results_that_cannot_be_read_are_told_with_their_run(runs):
  records = read(runs)
  records["naive_upstream"][1] = dataclasses.replace(records["naive_upstream"][1], results={})
  with pytest.raises(ResultsError, match=r"naive_upstream/seed_1: results\.json"):
    build_sweep(records, CHANGES)


def test_a_finished_sweep_is_read_back(runs, tmp_path):
  sweep = build_sweep(read(runs), CHANGES, resamples=50, comparisons=ASKED)
  write_sweep(tmp_path, read(runs), sweep)
  assert load_sweep(tmp_path) == sweep
  assert list(sweep_tables(sweep)) == ["Ranking", *ASKED, "Copying"]
  assert describe_sweep(sweep) == "toy, 2 variants, seed 0, 1, 6 minutes of stages; jax 0.10.2."


@pytest.mark.parametrize(
  ("text", "told"),
  [(None, "no such file"), ("{", "is not JSON"), ("[]", "has no dataset, variants"), ('{"dataset": "a"}', "has no variants")],
)
def test_what_is_no_table_of_a_sweep_is_told(text, told, tmp_path):
  if text is not None:
    (tmp_path / "sweep.json").write_text(text)
  with pytest.raises(ResultsError, match=told):
    load_sweep(tmp_path)
