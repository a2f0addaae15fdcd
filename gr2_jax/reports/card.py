"""A run's card, `card.md` and `card.html`: what it measured, against what, how that was made; and the table for the end of a run."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr2_jax.evaluation.results import BASELINE, POLICY, load_results
from gr2_jax.files import replacing
from gr2_jax.reports import plots
from gr2_jax.reports.compression import compression_table
from gr2_jax.reports.latency import plot_latency
from gr2_jax.reports.monitors import MONITORS, list_suspicions, monitors_section
from gr2_jax.reports.names import TABLE_METRICS, ranker_title, sort_rankers
from gr2_jax.reports.page import render_page
from gr2_jax.reports.rankers import all_rankers_section, comparisons_section, headline_section, presentations_section, titles_of
from gr2_jax.reports.reasons import reasons_table
from gr2_jax.reports.sections import (
  cost_section,
  data_section,
  evidence_section,
  latency_section,
  provenance_section,
  read_artifact,
  retrieval_section,
  tokenizer_section,
  traces_section,
)
from gr2_jax.reports.segments import all_segments_section, segments_section
from gr2_jax.reports.tables import (
  ONE_USER_NOTE,
  TABLE_STYLE,
  console_text,
  count_slates,
  escape_markdown,
  format_lift,
  format_number,
  lift_style,
)
from gr2_jax.reports.verdict import list_comparisons, verdict
from gr2_jax.runs.artifacts import refresh_digests
from gr2_jax.runs.run import Run
from gr2_jax.training.writers import read_metrics

_LOSSES = {"midtrain": "mid-training", "sft": "SFT", "direct": "direct policy"}  # file of metrics -> panel


def write_card(run_directory: str | pathlib.Path) -> pathlib.Path:
  """Writes `evaluation/card.md`, `card.html` and `plots/*.png` of a run from its artifacts; returns the path of `card.md`.

  `card.html` is the same page with the plots in it, one file to send on. Needs `evaluation/results.json` (raises ResultsError without it);
  a section whose artifact is missing says so in a sentence. Of a finished run it also refreshes the digests of what it wrote.
  """
  run = pathlib.Path(run_directory)
  folder = run / "evaluation"
  results = load_results(folder / "results.json")
  pictures = _write_plots(results, run, folder / "plots")
  title, text = _title(results, run), _write_text(results, run, pictures)
  card = folder / "card.md"
  page = render_page(title, text, {f"plots/{name}": (folder / "plots" / name).read_bytes() for name in pictures})
  for path, content in ((card, text), (card.with_suffix(".html"), page)):
    with replacing(path) as partial:  # the old one may be shared with another run
      partial.write_text(content, encoding="utf-8")
  refresh_digests(Run(run, ConfigDict(), main=False), "evaluation", card.name, card.with_suffix(".html").name, "plots")
  return card


def _title(results: Mapping[str, Any], run: pathlib.Path) -> str:
  config = read_artifact(run, "config.json") or {}
  names = dict.fromkeys([config.get("name", run.resolve().name), results["dataset"]])  # one name where they are the same
  return f"{': '.join(names)}, {_seeds(results)}"


def _write_text(results: Mapping[str, Any], run: pathlib.Path, pictures: Mapping[str, str]) -> str:
  """The card in Markdown: first what is read in ten seconds, last all that was run."""

  def show(*names: str) -> list[str]:
    return [f"**{pictures[name]}**\n\n![{pictures[name]}](plots/{name})" for name in names if name in pictures]

  curves = show("losses.png", "opd.png", "rl.png")
  sections = {
    "Who beats whom": [comparisons_section(results)],
    "Headline": [headline_section(results), *show("orders.png")],
    "Monitors": [monitors_section(results), *show("top1_share.png")],
    "Curves": curves or ["No training left curves in this run."],
    "Segments": [segments_section(results)],
    "Latency against quality": [latency_section(run), *show("latency.png")],
  }
  details = {
    "All rankers": [all_rankers_section(results)],
    "Presentations": [presentations_section(results)],
    "All rankers by segment": [all_segments_section(results)],
    "Evidence": [evidence_section(results)],
    "Reasons": [reasons_table(results)],
    "Compression": [compression_table(results["orders"], results["paired"], results["cost"])],
    "Data": [data_section(results, run), *show("upstream_rank.png")],
    "Semantic IDs": [tokenizer_section(run), *show("sid_usage.png")],
    "Full catalogue": [retrieval_section(run)],
    "Traces": [traces_section(run)],
    "Cost": [cost_section(results, run)],
    "How it was run": [provenance_section(results, run)],
  }
  parts = [f"# {escape_markdown(_title(results, run))}", f"**{escape_markdown(verdict(results))}**"]
  for name, text in sections.items():
    parts += [f"## {name}", *text]
  parts.append("## What was run")
  for name, text in details.items():
    parts += [f"### {name}", *text]
  return "\n\n".join(parts) + "\n"


def _write_plots(results: Mapping[str, Any], run: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
  """Draws what there is data for; file name -> caption."""
  tokenizer, slates = read_artifact(run, "tokenize", "report.json"), read_artifact(run, "slates", "report.json") or {}
  latency = read_artifact(run, "evaluation", "latency.json")
  metrics = {name: read_metrics(run / "metrics" / f"{name}.jsonl") for name in (*_LOSSES, "opd", "rl")}
  drawn = {
    "orders.png": (plots.plot_rankers(results), "Rankers against the upstream order"),
    "top1_share.png": (plots.plot_top1_share(results, POLICY), "Slots of the policy's first choices"),
    "losses.png": (plots.plot_losses({title: metrics[name] for name, title in _LOSSES.items()}), "Losses of supervised training"),
    "opd.png": (plots.plot_rl(metrics["opd"]), "On-policy distillation"),
    "rl.png": (plots.plot_rl(metrics["rl"]), "Reinforcement learning"),
    "latency.png": (None if latency is None else plot_latency(latency), "Latency against quality"),
    "upstream_rank.png": (
      plots.plot_rank_histogram(slates.get("target_upstream_rank") or results["upstream_rank_histogram"]),
      "The target's upstream rank in training and test slates",
    ),
    "sid_usage.png": (None if tokenizer is None else plots.plot_sid_usage(tokenizer), "Use of the semantic-ID codebooks"),
  }
  captions = {}
  for name, (figure, caption) in drawn.items():
    if figure is not None:
      plots.save_figure(figure, folder / name)
      captions[name] = caption
  return captions


def _seeds(results: Mapping[str, Any]) -> str:
  seeds = results["seeds"]
  return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def render_console_table(results: Mapping[str, Any]) -> RenderableType:
  """The rankers with their paired intervals, and the monitors, as Rich tables that fit into 80 columns; last who beats whom."""
  head, titles = f"{results['dataset']}, {_seeds(results)}: {count_slates(results['n'], 'test ')}", titles_of(results)
  caption = "below: relative to the upstream order, with its paired 95 % interval"
  if results["bootstrap"]["clusters"] == 1:
    caption += f"\n{ONE_USER_NOTE}"
  rankers = Table(title=console_text(head, "table.title"), caption=Text(caption, "table.caption"), **TABLE_STYLE)
  rankers.add_column("ranker", no_wrap=True)
  for label in TABLE_METRICS.values():
    rankers.add_column(label, justify="right", overflow="fold")  # no digit is left out where intervals are wide
  for name in sort_rankers(results["orders"], titles):
    cells = []
    for metric in TABLE_METRICS:
      of = results["paired"].get(f"{name}_vs_{BASELINE}", {}).get(metric)
      lines = [f"{results['orders'][name][metric]:.4f}", *format_lift(of, digits=0).replace(", ", ",").replace(" [", "\n[").splitlines()]
      cells.append(Text(lines[0]).append("".join(f"\n{line}" for line in lines[1:]), style=lift_style(of)))
    rankers.add_row(console_text(ranker_title(name, titles)), *cells)
  monitors = Table(title="hacking monitors", caption="all but the first over valid answers", **TABLE_STYLE)
  monitors.add_column("ranker", no_wrap=True)
  for label in MONITORS.values():
    monitors.add_column(label, justify="right")
  for name in sort_rankers(results["diagnostics"], titles):
    monitors.add_row(
      console_text(ranker_title(name, titles)), *(format_number(results["diagnostics"][name].get(key), ".3f") for key in MONITORS)
    )
  warnings = [console_text(line, "dark_orange") for line in list_suspicions(results)]
  comparisons = [console_text(line) for line in list_comparisons(results)]
  return Group(rankers, monitors, *warnings, *comparisons, console_text(verdict(results), "bold"))
