"""The card and the console table of a made-up run, with and without its artifacts."""

import io
import json
import os
import re

import numpy as np
import pytest
from finished_runs import make_finished_run
from rich.console import Console

from experiments.card import rebuild
from gr2_jax.evaluation.results import Answers, RankerAnswers, ResultsError, build_results, load_results, write_results
from gr2_jax.reports.card import render_console_table, write_card
from gr2_jax.reports.names import ranker_title, sort_rankers
from gr2_jax.reports.tables import ONE_USER_NOTE
from gr2_jax.runs.artifacts import check_intact
from gr2_jax.runs.run import Run
from gr2_jax.runs.sharing import link_stage

N, K = 60, 5
PNG = b"\x89PNG"


# What the columns of a section's table mean stands below it.
LEGENDS = {
  "All rankers": "R@k:",
  "Monitors": "valid:",
  "Presentations": "shown:",
  "Semantic IDs": "largest prefix bucket:",
  "Full catalogue": "n: test requests",
  "Traces": "accepted:",
  "Cost": "prompt",
}


def make_results(**changes):
  rng = np.random.default_rng(0)
  natural = np.tile(np.arange(K), (N, 1))
  labels = np.eye(K, dtype=int)[rng.integers(K, size=N)]
  shuffled = rng.permuted(natural, axis=1)
  oracle = np.argsort(-labels, axis=1, kind="stable")
  first = np.where(np.arange(N)[:, None] < 3, -1, oracle)
  answers = {"upstream": Answers(first, natural, ["missing"] * 3 + [None] * (N - 3)), "shuffled_1": Answers(oracle, shuffled, [None] * N)}
  rankers = {
    "upstream": RankerAnswers.of(natural),
    "oracle": RankerAnswers.of(oracle),
    "my|order": RankerAnswers.of(shuffled),
    "policy": RankerAnswers(answers, {"prompt_tokens": 90.0, "ms_per_slate": 2.5}),
  }
  segments = ["same_day", "different_day"] * (N // 2)
  notes = ["Counts use only events before the request."]
  return build_results(
    dataset="toy",
    seeds=[7],
    labels=labels,
    rankers=rankers,
    titles={"policy": "RL policy"},
    segments=segments,
    notes=notes,
    resamples=200,
    **changes,
  )


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.fixture
def bare_run(tmp_path):
  write_results(tmp_path / "evaluation" / "results.json", make_results())
  return tmp_path


@pytest.fixture
def full_run(bare_run):
  level = {"used": 8, "usage": 1.0, "perplexity": 7.5, "largest_share": 1.1}
  codes = {"distinct_share": 0.9, "own_share": 0.8, "levels": [level] * 3, "prefix_buckets": {"1": 3, "12": 1}}
  report = {"items": 20, "codebook_size": 8, "last_level": "random", "r2": 0.5, "before": codes, "after": codes}
  write(bare_run / "tokenize" / "report.json", report)
  write(bare_run / "data" / "counts.json", {"source": "toy.jsonl", "users": 12345})
  write(bare_run / "data" / "bad_lines.jsonl", "{}\n{}\n")
  write(bare_run / "midtrain" / "retrieval.json", {"beams": 5, "masked": {"n": 10, "recall@5": 0.25, "ndcg@5": 0.125}})
  ranks = {"train": [3, 2, 1, 0, 0], "test": [1, 1, 1, 1, 1]}
  write(
    bare_run / "slates" / "report.json",
    {"slates": {"train": 6, "test": 5}, "retrieved": {"test": {"requests": 8, "retrieved": 5}}, "target_upstream_rank": ranks},
  )
  acceptance = {"sampling": "rejection", "slates": 6, "attempts": 9, "accepted": 4, "reasons": {"accepted": 4, "wrong_top": 5}}
  write(bare_run / "traces" / "acceptance.json", acceptance | {"asked_by_upstream_rank": [4, 2, 0], "accepted_by_upstream_rank": [3, 1, 0]})
  lines = [{"step": s, "reward": 0.1 * s, "entropy": None if s == 2 else 1.0, "valid_rate": 1.0} for s in range(1, 5)]
  write(bare_run / "metrics" / "rl.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "rew')
  write(bare_run / "config.json", {"name": "tiny", "seed": 7})
  write(bare_run / "versions.json", {"python": "3.11", "jax": "0.10", "git_commit": None})
  write(bare_run / "command.txt", "python -m experiments.run --workdir=RUN\n")
  write(bare_run / "rl" / "done.json", {"seconds": 12.0})
  return bare_run


def test_card_of_a_full_run(full_run):
  card = write_card(full_run).read_text(encoding="utf-8")
  results = load_results(full_run / "evaluation" / "results.json")
  assert card.startswith(
    "# tiny: toy, seed 7\n\n**The RL policy is above the upstream order.**\n\n## Who beats whom\n\n- The RL policy is above "
  )
  row = next(line for line in card.splitlines() if line.startswith("| RL policy |"))
  lift = results["paired"]["policy_vs_upstream"]["recall@1"]
  low, high = lift["ci95"]
  assert f"{results['orders']['policy']['recall@1']:.4f}<br>{100 * lift['relative']:+.1f} % [{100 * low:.1f}, {100 * high:.1f}]" in row
  for part in (
    "60 test slates",
    "Not measured in this run: random, popularity, LambdaMART.",
    "RL policy missing 5.0 %",
    "**same day** (30 slates)",
    "Counts use only events before the request.",
    "| users | 12,345 |",
    "| bad lines left out | 2 ",
    "| requests whose target was retrieved, test | 5 of 8 (62.5%) |",
    "0.9000 | 0.8000",
    "| 0.2500 | 0.1250 |",
    "4 of 6 slates with an accepted trace",
    "| 1 | 4 | 3 | 0.750 |",
    "| 3 | 0 | 0 | – |",
    "| ranker | prompt tokens |",
    "| RL policy | 90.0 |",
    "Seconds by stage: rl 12",
    "Seeds: 7",
    "--workdir=RUN",
    "jax 0.10",
    "my\\|order",
  ):
    assert part in card, part
  sections = {section.partition("\n")[0]: section for section in re.split("\n###? ", card)}
  assert list(sections)[1:8] == [
    *("Who beats whom", "Headline", "Monitors", "Curves", "Segments", "Latency against quality", "What was run"),
  ]
  assert "my\\|order" not in sections["Headline"]
  for name, word in LEGENDS.items():
    assert word in sections[name][sections[name].rindex("|\n") :], name
  assert "nan" not in card.lower() and "None" not in card
  pictures = re.findall(r"\(plots/(\w+\.png)\)", card)
  assert pictures == ["orders.png", "top1_share.png", "rl.png", "upstream_rank.png", "sid_usage.png"]
  assert all((full_run / "evaluation" / "plots" / name).read_bytes().startswith(PNG) for name in pictures)


def test_text_of_users_stays_text(bare_run):
  results = json.loads((bare_run / "evaluation" / "results.json").read_text())
  results["segments"] = {"a`|\x1b[2J<b>": results["segments"]["same_day"]}
  write_results(bare_run / "evaluation" / "results.json", results | {"dataset": "my[/x]`data`"})
  write(bare_run / "config.json", {"name": "my[/x]`data`"})  # the config's name and the data's are one, and told once
  write(bare_run / "command.txt", "python -m experiments.run --config.name='```\n# not a title\u202e'\n")
  path = write_card(bare_run)
  card, page = path.read_text(encoding="utf-8"), path.with_suffix(".html").read_text(encoding="utf-8")
  assert "<title>my[/x]`data`, seed 7</title>" in page and "<strong>a`|\\x1b[2J&lt;b&gt;</strong>" in page
  assert "\n# not a title\\u202e'" in page and "<h1>not" not in page
  assert card.splitlines()[0] == r"# my\[/x\]\`data\`, seed 7" and r"**a\`\|\\x1b\[2J\<b>**" in card
  assert "````\npython" in card and not set("\x1b\u202e") & set(card)
  console = Console(width=80, file=io.StringIO())
  console.print(render_console_table(load_results(bare_run / "evaluation" / "results.json")))
  assert "my[/x]`data`, seed 7: 60 test slates" in console.file.getvalue()


def test_one_user_leaves_no_interval_and_is_told(tmp_path):
  results = make_results(users=["u"] * N)
  write_results(tmp_path / "evaluation" / "results.json", results)
  card = write_card(tmp_path).read_text(encoding="utf-8")
  assert "no interval, since all slates are of one user" in card
  assert " % [one user]" in card and ONE_USER_NOTE in card
  console = Console(width=80, file=io.StringIO())
  console.print(render_console_table(results))
  assert "[one user]" in console.file.getvalue() and "there is no interval from one user" in console.file.getvalue()


def test_card_says_what_is_missing(bare_run):
  card = write_card(bare_run).read_text(encoding="utf-8")
  for sentence in ("No tokenizer report", "No full-catalogue metrics", "No traces", "No training left curves", "command.txt is missing"):
    assert sentence in card
  assert re.findall(r"\(plots/(\w+\.png)\)", card) == ["orders.png", "top1_share.png", "upstream_rank.png"]


def test_what_another_run_shares_by_links_stays_as_it_is(bare_run, tmp_path):
  (tmp_path / "other").mkdir()
  card = write_card(bare_run)
  written = (card, card.with_suffix(".html"), card.parent / "plots" / "orders.png")
  shared = {path: tmp_path / "other" / path.name for path in written}
  for path, other in shared.items():
    os.link(path, other)
  write_card(bare_run)
  assert not any(path.samefile(other) for path, other in shared.items())


def test_stages_stand_in_the_order_that_their_records_tell_and_the_others_by_name(bare_run):
  for stage, record in {"rl": {"place": 1}, "sft": {"place": 0}, "tokenize": {}, "data": {}}.items():
    write(bare_run / stage / "done.json", {"seconds": 2.0} | record)
  assert "Seconds by stage: sft 2, rl 2, data 2, tokenize 2; together 8." in write_card(bare_run).read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_card(full_run):
  def written():
    card = write_card(full_run)
    return {path.name: path.read_bytes() for path in (card, card.with_suffix(".html"), *(card.parent / "plots").iterdir())}

  assert written() == written()


def test_a_run_without_results_is_refused(tmp_path, capsys):
  with pytest.raises(ResultsError, match=r"results\.json: there is no such file"):
    write_card(tmp_path)
  assert rebuild(str(tmp_path)) == 1 and "run the evaluation stage first" in capsys.readouterr().err
  assert rebuild(str(tmp_path / "nowhere")) == 1 and "is no folder" in capsys.readouterr().err
  assert rebuild(None) == 1 and "--run is missing" in capsys.readouterr().err


def test_program_prints_where_the_card_lies(bare_run, capsys):
  assert rebuild(str(bare_run)) == 0
  cards = [bare_run / "evaluation" / name for name in ("card.md", "card.html")]
  assert capsys.readouterr().out.split() == [*map(str, cards)] and all(card.exists() for card in cards)


def test_a_stage_whose_card_was_made_again_can_be_taken_over(tmp_path):
  """Runs that share its files by links keep theirs."""
  run = Run.open(make_finished_run(tmp_path / "run"))
  before, after = (Run(tmp_path / name, run.config) for name in ("before", "after"))
  link_stage(before, "evaluation", run)
  assert rebuild(str(run.directory)) == 0
  link_stage(after, "evaluation", run)
  for taken in (before, after):
    check_intact(taken, "evaluation")
  assert before.path("evaluation", "card.md").read_text() == "# by hand\n" != after.path("evaluation", "card.md").read_text()


def test_console_table_fits_into_80_columns():
  results = make_results()
  for part in ("orders", "diagnostics"):  # the longest name there is
    results[part]["last_transition"] = results[part].pop("my|order")
  results["paired"]["last_transition_vs_upstream"] = results["paired"]["policy_vs_upstream"]
  console = Console(width=80, record=True, file=io.StringIO())
  console.print(render_console_table(results))
  text = console.export_text()
  assert max(map(len, text.splitlines())) <= 80 and "…" not in text
  assert f"{results['orders']['policy']['mrr']:.4f}" in text
  low, high = results["paired"]["policy_vs_upstream"]["mrr"]["ci95"]
  assert f"[{100 * low:.0f},{100 * high:.0f}]" in text


def test_the_console_leaves_out_no_digit_of_a_wide_interval():
  results = make_results()
  for of in results["paired"]["policy_vs_upstream"].values():
    of |= {"relative": 12.34, "ci95": [10.23, 14.56]}
  results["paired"]["policy_vs_upstream"]["recall@1"] |= {"relative": None, "ci95": None}
  console = Console(width=80, file=io.StringIO())
  console.print(render_console_table(results))
  text = console.file.getvalue()
  assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_rankers_stand_from_upstream_to_oracle():
  assert sort_rankers(["oracle", "bayes", "policy", "mine", "sft", "upstream"], {"sft": "SFT", "policy": "RL"}) == [
    "upstream",
    "sft",
    "policy",
    "mine",
    "bayes",
    "oracle",
  ]
  assert sort_rankers(["policy", "sft"], {"policy": "RL", "sft": "SFT"}) == ["policy", "sft"]


def test_classical_rankers_have_titles_and_the_others_are_told():
  assert ranker_title("lambdamart", {}) == "LambdaMART"
  assert ranker_title("my_ranker", {}) == "my ranker" and ranker_title("my_ranker", {"my_ranker": "Mine"}) == "Mine"
