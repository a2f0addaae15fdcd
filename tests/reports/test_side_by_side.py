"""Runs of any origin side by side: paired where their slates are the same, refused with the reason where not."""

import io
import json

import numpy as np
import pytest
from finished_runs import N, make_finished_run
from rich.console import Console

from gr2_jax.errors import ConfigError, UserError
from gr2_jax.evaluation.paired import paired_bootstrap
from gr2_jax.evaluation.results import ResultsError
from gr2_jax.reports.side_by_side import compare_sides, read_sides, render_comparison, write_comparison
from gr2_jax.runs.run import RunError
from gr2_jax.runs.run_file import find_finished, write_run_file


def share(directory, path):
  runs, _ = find_finished(directory)
  write_run_file(path, runs, {name: {} for name in runs}, pages={})
  return str(path)


def compare(*paths):
  sides, left_out = read_sides(list(map(str, paths)))
  return sides, compare_sides(sides, left_out, resamples=200)


def shown(compared, width=120):
  console = Console(file=io.StringIO(), width=width)
  console.print(render_comparison(compared))
  return console.file.getvalue()


@pytest.fixture
def weak(tmp_path):
  return make_finished_run(tmp_path / "weak", 0, 0.5)


@pytest.fixture
def strong(tmp_path):
  """Another seed, on the same test slates."""
  return make_finished_run(tmp_path / "strong", 1, 5.0, slates=0, changes={"rl.steps": 77, "rl.reward.condition": "naive"})


def test_a_run_and_a_file_are_compared_in_pairs(weak, strong, tmp_path):
  sides, compared = compare(weak, share(strong, tmp_path / "strong.gr2"))
  assert [pair["reason"] for pair in compared["pairs"]] == [None]
  lines = {of["order"]: of for of in compared["comparisons"]["strong against weak"]}
  assert set(lines) == {"strong/upstream", "strong/sft", "strong/policy"}
  values = [side.tested[seed].rankers["policy"]["recall@1"] for side, seed in zip(sides, (0, 1), strict=True)]
  apart = paired_bootstrap(values[1], values[0], seed=0, resamples=200, clusters=sides[0].tested[0].users)
  found = lines["strong/policy"]["paired"]["recall@1"]
  assert (found["delta"], *found["delta_ci95"]) == pytest.approx((apart.delta[0], apart.delta_low[0], apart.delta_high[0]))
  assert found["delta_ci95"][0] > 0 and lines["strong/policy"]["n"] == N
  assert set(compared["config"]) == {"seed", "rl.steps", "rl.reward.condition"}
  assert compared["config"]["rl.steps"]["strong"] == [77] and compared["versions"] == {}


def test_other_slates_are_not_paired_though_their_users_have_the_same_names(weak, tmp_path):
  sides, compared = compare(weak, make_finished_run(tmp_path / "elsewhere", 2))
  assert compared["comparisons"] == {} and "tested on different slates (40 and 40 of them)" in compared["pairs"][0]["reason"]
  assert compared["sides"]["elsewhere"]["orders"]["policy"]["mrr"] != compared["sides"]["weak"]["orders"]["policy"]["mrr"]
  page = write_comparison(tmp_path / "page", sides, compared).read_text(encoding="utf-8")
  assert "Not compared in pairs: they were tested on different slates" in page
  assert f"{compared['sides']['elsewhere']['orders']['policy']['recall@1']:.4f}" in page
  told = shown(compared)
  assert "Not compared in pairs" in told and "[" not in told.split("elsewhere against weak")[1]


def make_sweep(folder, skills, seeds=(0, 1)):
  for variant, skill in skills.items():
    for seed in seeds:
      make_finished_run(folder / variant / f"seed_{seed}", seed, skill, changes={"rl.steps": int(10 * skill)})
  return folder


def test_seeds_are_pooled_and_variants_stand_against_their_namesakes(tmp_path):
  first = make_sweep(tmp_path / "first", {"naive": 0.5, "relative": 2.0})
  second = make_sweep(tmp_path / "second", {"relative": 2.0, "naive": 4.0}, seeds=(0, 1, 2))
  _, alone = compare(first)
  assert list(alone["sides"]) == ["naive", "relative"] and list(alone["comparisons"]) == ["relative against naive"]
  assert alone["config"]["rl.steps"] == {"naive": [5], "relative": [20]} and "seed" not in alone["config"]
  sides, compared = compare(first, share(second, tmp_path / "second.gr2"))
  assert [(pair["label"], pair["base"]) for pair in compared["pairs"]] == [
    ("first relative", "first naive"),
    ("second naive", "first naive"),
    ("second relative", "first relative"),
  ]
  lines = {of["order"]: of for of in compared["comparisons"]["second relative against first relative"]}
  # Seeds 0 and 1 are common to both, and the runs of one skill are the same.
  assert lines["second relative/policy"]["n"] == 2 * N and lines["second relative/policy"]["paired"]["mrr"]["delta"] == 0
  assert compared["sides"]["second relative"]["n"] == 3 * N and compared["config"]["seed"]["second naive"] == [0, 1, 2]
  _, part = compare(f"{tmp_path / 'second.gr2'}:naive", f"{tmp_path / 'second.gr2'}:relative/seed_1")
  assert [of["seeds"] for of in part["sides"].values()] == [[0, 1, 2], [1]] and part["pairs"][0]["reason"] is None


def test_half_a_sweep_is_shown_with_what_is_left_out(tmp_path):
  sweep = make_sweep(tmp_path / "sweep", {"naive": 0.5, "relative": 2.0})
  (sweep / "naive" / "seed_1" / "evaluation" / "done.json").unlink()
  sides, compared = compare(sweep)
  assert compared["left_out"] == [f"{sweep}: naive/seed_1 is left out: its evaluation is not finished"]
  assert compared["comparisons"]["relative against naive"][0]["n"] == N
  assert "left out" in write_comparison(tmp_path / "page", sides, compared).read_text(encoding="utf-8")
  for path in sweep.rglob("evaluation/done.json"):
    path.unlink()
  with pytest.raises(RunError, match="has no finished run"):
    read_sides([str(sweep)])


def test_the_page_has_the_curves_of_all(weak, strong, tmp_path):
  sides, compared = compare(weak, strong)
  page = write_comparison(tmp_path / "page", sides, compared)
  assert json.loads((tmp_path / "page" / "compare.json").read_text()) == compared
  text = page.read_text(encoding="utf-8")
  assert text.startswith("# weak, strong\n") and "| `rl.steps` | `" in text and "## strong against weak" in text
  for name in ("curves.png", "differences.png"):
    assert f"](plots/{name})" in text and (tmp_path / "page" / "plots" / name).read_bytes().startswith(b"\x89PNG")
  write_comparison(tmp_path / "page", sides, compared)  # its own page is replaced
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis" / "chapter.txt").write_text("precious")
  with pytest.raises(UserError, match="is not empty and holds no comparison"):
    write_comparison(tmp_path / "thesis", sides, compared)
  told = shown(compared)
  assert "rl.steps" in told and "strong against weak" in told and "RL policy" in told and "…" not in told


def test_what_cannot_be_compared(weak, tmp_path):
  with pytest.raises(UserError, match="there is one run to compare"):
    compare(weak)
  with pytest.raises(RunError, match="neither a run nor a sweep"):
    compare(weak, tmp_path / "nowhere")
  file = share(weak, tmp_path / "weak.gr2")
  with pytest.raises(ConfigError, match="has no run 'naive'; choose one"):
    compare(weak, f"{file}:naive")
  path = weak / "evaluation" / "per_slate.npz"
  with np.load(path) as arrays:
    np.savez(path, **{name: of for name, of in arrays.items() if name != "users"})
  done = json.loads((weak / "evaluation" / "done.json").read_text())
  (weak / "evaluation" / "done.json").write_text(json.dumps(done | {"outputs": []}))
  with pytest.raises(ResultsError, match="users, weights and metrics do not go together"):
    compare(weak, file)


def test_runs_of_one_name_have_labels_of_their_own(weak, tmp_path):
  again = make_finished_run(tmp_path / "else" / "weak", 0, 0.5)
  _, compared = compare(weak, again)
  assert list(compared["sides"]) == ["weak", "weak (2)"] and compared["config"] == {} and "configurations are the same" in shown(compared)
