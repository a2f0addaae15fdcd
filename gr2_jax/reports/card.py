"""`card.md`: what a run measured, on what, with which seeds, versions and command; and the table for the end of a run."""

import json
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr2_jax.evaluation.results import BASELINE, COMPRESSED, POLICY, REQUIRED_RANKERS, load_results
from gr2_jax.files import replacing
from gr2_jax.reports import plots
from gr2_jax.reports.compression import compression_table
from gr2_jax.reports.latency import latency_table, plot_latency
from gr2_jax.reports.names import TABLE_METRICS, ranker_title, sort_rankers
from gr2_jax.reports.reasons import reasons_table, warn_of_reasons
from gr2_jax.reports.tables import (
  ONE_USER_NOTE,
  TABLE_STYLE,
  code_block,
  console_text,
  escape_markdown,
  format_lift,
  format_number,
  lift_style,
  markdown_table,
)
from gr2_jax.reports.verdict import verdict
from gr2_jax.runs.run import read_mark, read_object
from gr2_jax.training.writers import read_metrics

_MONITORS = {
  "valid_rate": "valid",
  "identity_rate": "copies",
  "near_identity_rate": "near copies",
  "kendall_tau_to_shown": "τ shown",
  "kendall_tau_to_upstream": "τ upstream",
  "permutation_consistency": "agreement",
}

# What the columns mean, below each table.
_METRICS_NOTE = (
  "R@k: the share of a slate's positive candidates among the first k; with a single target, how often it stands there. N@k: NDCG of the "
  "first k, which counts a place the less the later it comes. MRR: mean of 1 / rank of the first positive one. All lie in 0 to 1, and "
  "higher is better; an invalid answer scores 0. A difference without % is not relative: the upstream order's own mean is 0, or may be."
)
_PAIRS_NOTE = "p: two-sided, of the difference being 0, from the same resamples."
_MONITORS_NOTE = (
  "valid: share of answers that are a full permutation of the candidates; the other columns are over these. Copies repeat the shown or the "
  "upstream order; near copies differ from one of them by at most one swap of two candidates. τ: Kendall's, to the shown and to the "
  "upstream order; agreement: mean τ between the answers to one slate shown in two orders. 1 is the same order, 0 no relation."
)
_PRESENTATIONS_NOTE = (
  "shown: the order in which the prompt lists the candidates. A model that re-ranks well only when it is shown the upstream order has "
  "learnt positions."
)
_TOKENIZER_NOTE = (
  "distinct IDs / items: 1 where no two items share an ID. levels: codes in use at each level, and their perplexity, the number of codes "
  "that would be as many if all were used alike. largest prefix bucket: items that share all codes but the last. A last level drawn "
  "without replacement makes IDs unique by construction; the first row is the tokenizer's own doing."
)
_RETRIEVAL_NOTE = (
  "n: test requests, each with one target among all items of the catalogue. Open: any item can be recommended; masked: not those of the "
  "history. Items that share a semantic ID stand before the target."
)
_TRACES_NOTE = "slates: whose traces were asked for; accepted: of these, with a trace that passed the check."
_COST_NOTE = (
  "Mean tokens of a slate's prompt and of its answer; prefill ms: the forward pass over a batch of prompts, by slate, timed in turns. How "
  "long a ranker takes is measured by `experiments.latency`, in turns too: rankers timed one after another would be told apart by what "
  "else the machine did."
)

_MOST_FACTS = 12
_EVIDENCE_NOTE = (
  f"The {_MOST_FACTS} facts whose values, dealt anew among all candidates, cost the order most, with paired 95 % intervals; facts that say "
  "the same lose little one by one. `gr2_jax.evidence.FACTS` says what each is."
)
_HARD_NOTE = (
  "Reasoning-hard are slates whose target the SFT policy does not put first when it answers without reasoning (hard_slates.json)."
)


def _titles(results: Mapping[str, Any]) -> Mapping[str, str]:
  titles: Mapping[str, str] = results.get("titles", {})  # files of the versions without titles have none
  return titles


def _ranker(name: str, titles: Mapping[str, str]) -> str:
  return escape_markdown(ranker_title(name, titles))


def _lift_over_upstream(table: Mapping[str, Any], name: str, metric: str) -> str:
  return format_lift(table["paired"].get(f"{name}_vs_{BASELINE}", {}).get(metric))


def _rankers_table(table: Mapping[str, Any], metrics: Mapping[str, str], titles: Mapping[str, str]) -> str:
  rows = []
  for name in sort_rankers(table["orders"], titles):
    cells = []
    for metric in metrics:
      lift = _lift_over_upstream(table, name, metric)
      cells.append(format_number(table["orders"][name][metric]) + (f"<br>{lift}" if lift else ""))
    rows.append([_ranker(name, titles), *cells])
  return markdown_table(["ranker", *metrics.values()], rows)


# Each section takes the results and the run's directory and returns its text; what is missing is said in a sentence.


def _read(run: pathlib.Path, *names: str) -> Any:
  path = run.joinpath(*names)
  return read_object(path, "restore it, or make it again") if path.exists() else None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  """`a.b: leaf` for each leaf of nested mappings."""
  flat = []
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat += _flatten(value, f"{prefix}{key}.")
    else:
      flat.append((f"{prefix}{key}", value))
  return flat


def _write_number(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return "–" if value is None else escape_markdown(str(value))
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _main_section(results: Mapping[str, Any]) -> str:
  titles = _titles(results)
  missing = [name for name in REQUIRED_RANKERS if name not in results["orders"]]
  of = results["bootstrap"]
  drawn = f"{of['clusters']:,} {'slates' if of['clusters'] == results['n'] else 'users'}"
  interval = "no interval, since all slates are of one user" if of["clusters"] == 1 else "its paired 95 % interval"
  resamples = "" if of["clusters"] == 1 else f" ({of['resamples']:,} resamples of {drawn})"
  text = [
    f"{results['n']:,} test {_slates(results['n'])}; NDCG with {results['gain']} gain. Below each value the relative "
    f"difference to the upstream order with {interval}{resamples}.",
    _rankers_table(results, TABLE_METRICS, titles),
    _METRICS_NOTE,
  ]
  if missing:
    text.append(f"Not measured in this run: {', '.join(_ranker(name, titles) for name in missing)}.")
  others = [pair for pair in results["paired"] if not pair.endswith(f"_vs_{BASELINE}") and not pair.startswith(COMPRESSED)]
  if others:
    rows = []
    for pair in others:
      name, base = pair.split("_vs_")
      paired = [results["paired"][pair][metric] for metric in TABLE_METRICS]
      cells = (f"{format_lift(of)}<br>p = {format_number(of['p'])}" for of in paired)
      rows.append([f"{_ranker(name, titles)} over {_ranker(base, titles)}", *cells])
    text += [markdown_table(["relative difference", *TABLE_METRICS.values()], rows), _PAIRS_NOTE]
  return "\n\n".join(text)


def _monitors_section(results: Mapping[str, Any]) -> str:
  diagnostics, titles = results["diagnostics"], _titles(results)
  rows = []
  for name in sort_rankers(diagnostics, titles):
    title = _ranker(name, titles)
    rows.append([title, *(format_number(diagnostics[name].get(key), ".3f") for key in _MONITORS)])
    for presentation in list(results["presentations"].get(name, {}))[1:]:
      of = diagnostics[name].get(presentation, {})
      rows.append([f"{title}, {presentation.replace('_', ' ')}", *(format_number(of.get(key), ".3f") for key in _MONITORS)])
  text = [markdown_table(["ranker", *_MONITORS.values()], rows), _MONITORS_NOTE]
  failing = [(name, kind, share) for name, of in diagnostics.items() for kind, share in of.get("errors", {}).items() if share]
  if failing:
    text.append("Invalid answers: " + "; ".join(f"{_ranker(n, titles)} {k.replace('_', ' ')} {100 * s:.1f} %" for n, k, s in failing) + ".")
  return "\n\n".join(text)


def _presentations_section(results: Mapping[str, Any]) -> str:
  presented, titles = results["presentations"], _titles(results)
  if not presented:
    return "All rankers were measured with the candidates shown in the upstream order only."
  rows = [
    [_ranker(name, titles), presentation.replace("_", " "), *(format_number(of[m]) for m in TABLE_METRICS)]
    for name in sort_rankers(presented, titles)
    for presentation, of in presented[name].items()
  ]
  return markdown_table(["ranker", "shown", *TABLE_METRICS.values()], rows) + "\n\n" + _PRESENTATIONS_NOTE


def _segments_section(results: Mapping[str, Any]) -> str:
  segments, subsets = results["segments"], results["subsets"]
  if not segments and not subsets:
    return "The slates carry no segments."
  metrics = {m: TABLE_METRICS[m] for m in ("recall@1", "recall@3", "ndcg@3")}
  tables = {
    f"**{escape_markdown(name.replace('_', ' '))}** ({table['n']:,} {_slates(table['n'])})": _rankers_table(
      table, metrics, _titles(results)
    )
    for name, table in (segments | subsets).items()
  }
  text = [f"{head}\n\n{table}" for head, table in tables.items()]
  if "reasoning_hard" in subsets:
    text.append(_HARD_NOTE)
  return "\n\n".join(text)


def _data_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  size = results["slate_size"]
  rows = [("dataset", escape_markdown(results["dataset"])), ("test slates", f"{results['n']:,}")]
  rows += [("candidates per slate", f"{size['mean']:.1f} (at most {size['max']})")]
  counts, slates = _read(run, "data", "counts.json") or {}, _read(run, "slates", "report.json") or {}
  rows += [(key, _write_number(value)) for key, value in _flatten(counts) if not (key.startswith("slates.") and slates)]
  rows += [(f"re-ranking slates, {split}", f"{count:,}") for split, count in slates.get("slates", {}).items()]
  rows += [
    (f"requests whose target was retrieved, {split}", f"{of['retrieved']:,} of {of['requests']:,} ({of['retrieved'] / of['requests']:.1%})")
    for split, of in slates.get("retrieved", {}).items()
  ]
  bad = run / "data" / "bad_lines.jsonl"
  if bad.exists():
    kinds = Counter(json.loads(line).get("left_out", "line") for line in bad.read_text(encoding="utf-8").splitlines())
    rows += [(f"bad {kind}s left out", f"{count:,} (data/bad_lines.jsonl)") for kind, count in kinds.items()]
  return markdown_table(["", ""], rows) + "".join(f"\n\n{note}" for note in results["notes"])


def _tokenizer_section(run: pathlib.Path) -> str:
  report = _read(run, "tokenize", "report.json")
  if report is None:
    return "No tokenizer report in this run."
  rows = []
  for when, title in (("before", "learned alone"), ("after", "as exported")):
    of = report[when]
    levels = "; ".join(f"{level['used']} used, perplexity {level['perplexity']:.1f}" for level in of["levels"])
    sizes = [int(s) for s in of["prefix_buckets"]]
    rows.append([title, f"{of['distinct_share']:.4f}", f"{of['own_share']:.4f}", levels, max(sizes)])
  table = markdown_table(["codes", "distinct IDs / items", "items alone on their ID", "levels", "largest prefix bucket"], rows)
  head = (
    f"{report['items']:,} items{_write_twins(report)}, codebook {report['codebook_size']}, last level {report['last_level']}, "
    f"reconstruction R² {report['r2']:.3f}."
  )
  return f"{head}\n\n{table}\n\n{_TOKENIZER_NOTE}"


def _write_twins(report: Mapping[str, Any]) -> str:
  """How many items share their text (or vector), in runs that have counted it."""
  distinct = report.get("distinct_inputs", report["items"])
  return f" with {distinct:,} texts (or vectors), of which one has {report['largest_input']:,} items" if distinct < report["items"] else ""


def _retrieval_section(run: pathlib.Path) -> str:
  midtrain = _read(run, "midtrain", "retrieval.json") or {}
  upstream = (_read(run, "slates", "report.json") or {}).get("retrieval", {})
  tables = {f"mid-trained model, {name}": of for name, of in midtrain.items() if isinstance(of, Mapping)}
  tables |= {f"upstream ranker, {name}": of for name, of in upstream.items()}
  if not tables:
    return "No full-catalogue metrics in this run."
  metrics = [m for m in next(iter(tables.values())) if m != "n"]
  rows = [[name, f"{int(of['n']):,}", *(format_number(of.get(m)) for m in metrics)] for name, of in tables.items()]
  return markdown_table(["ranker", "n", *metrics], rows) + "\n\n" + _RETRIEVAL_NOTE


def _traces_section(run: pathlib.Path) -> str:
  report = _read(run, "traces", "acceptance.json")
  if report is None:
    return "No traces in this run."
  pairs = zip(report["asked_by_upstream_rank"], report["accepted_by_upstream_rank"], strict=True)
  rows = [(r, asked, took, f"{took / asked:.3f}" if asked else "–") for r, (asked, took) in enumerate(pairs, 1)]
  reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in report["reasons"].items())
  head = (
    f"{report['sampling'].capitalize()} sampling: {report['accepted']:,} of {report['slates']:,} slates with an accepted trace, "
    f"{report['attempts']:,} attempts ({reasons})."
  )
  return "\n\n".join([head, markdown_table(["target's upstream rank", "slates", "accepted", "share"], rows), _TRACES_NOTE])


def _evidence_section(results: Mapping[str, Any]) -> str:
  importance = results.get("importance", {})
  if not importance:
    return "No scored policy was measured: facts carry those alone."
  titles = _titles(results)
  rows = [
    [_ranker(name, titles), f"`{fact}`", f"{of['delta']:+.4f} [{of['ci95'][0]:+.4f}, {of['ci95'][1]:+.4f}]"]
    for name, facts in importance.items()
    for fact, of in list(facts.items())[:_MOST_FACTS]
  ]
  return markdown_table(["ranker", "fact", "N@3 lost without it"], rows) + f"\n\n{_EVIDENCE_NOTE}"


def _cost_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  text = []
  if results["cost"]:
    columns = [key for key in dict.fromkeys(key for of in results["cost"].values() for key in of) if key != "ms_per_slate"]
    titles = _titles(results)
    rows = [[_ranker(name, titles), *(format_number(of.get(c), ",.1f") for c in columns)] for name, of in results["cost"].items()]
    text += [markdown_table(["ranker", *(c.replace("_", " ") for c in columns)], rows), _COST_NOTE]
  seconds = _stage_seconds(run)
  if seconds:
    stages = ", ".join(f"{stage} {s:.0f}" for stage, s in seconds.items())
    text.append(f"Seconds by stage: {stages}; together {sum(seconds.values()):.0f}.")
  return "\n\n".join(text) or "No cost was measured in this run."


def _stage_seconds(run: pathlib.Path) -> dict[str, float]:
  """Seconds of each finished stage, in the order of the pipeline where their records tell it, the others by name."""
  done = {path.parent.name: read_mark(path) or {} for path in run.glob("*/done.json")}
  stages = sorted(done, key=lambda stage: (done[stage].get("place", math.inf), stage))
  return {stage: done[stage]["seconds"] for stage in stages}


def _latency_section(run: pathlib.Path) -> str:
  latency = _read(run, "evaluation", "latency.json")
  return "Not measured in this run; `python -m experiments.latency --run=RUN` does." if latency is None else latency_table(latency)


def _provenance_section(results: Mapping[str, Any], run: pathlib.Path) -> str:
  command = run / "command.txt"
  lines = command.read_text(encoding="utf-8").strip() if command.exists() else "(command.txt is missing)"
  versions = _flatten(_read(run, "versions.json") or {})
  text = f"Seeds: {', '.join(map(str, results['seeds']))}. The resolved config is `config.json`.\n\n{code_block(lines)}"
  if versions:
    text += "\n\nVersions: " + ", ".join(f"{name} {escape_markdown(str(value))}" for name, value in versions if value is not None) + "."
  return text


def _write_plots(results: Mapping[str, Any], run: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
  """Draws what there is data for; file name -> caption."""
  tokenizer, slates = _read(run, "tokenize", "report.json"), _read(run, "slates", "report.json") or {}
  latency = _read(run, "evaluation", "latency.json")
  drawn = {
    "orders.png": (plots.plot_rankers(results), "Rankers against the upstream order"),
    "upstream_rank.png": (
      plots.plot_rank_histogram(slates.get("target_upstream_rank") or results["upstream_rank_histogram"]),
      "The target's upstream rank in training and test slates",
    ),
    "opd.png": (plots.plot_rl(read_metrics(run / "metrics" / "opd.jsonl")), "On-policy distillation"),
    "rl.png": (plots.plot_rl(read_metrics(run / "metrics" / "rl.jsonl")), "Reinforcement learning"),
    "top1_share.png": (plots.plot_top1_share(results, POLICY), "Slots of the policy's first choices"),
    "latency.png": (None if latency is None else plot_latency(latency), "Latency against quality"),
    "sid_usage.png": (None if tokenizer is None else plots.plot_sid_usage(tokenizer), "Use of the semantic-ID codebooks"),
  }
  captions = {}
  for name, (figure, caption) in drawn.items():
    if figure is not None:
      plots.save_figure(figure, folder / name)
      captions[name] = caption
  return captions


def _slates(count: int) -> str:
  return "slate" if count == 1 else "slates"


def _seeds(results: Mapping[str, Any]) -> str:
  seeds = results["seeds"]
  return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def write_card(run_directory: str | pathlib.Path) -> pathlib.Path:
  """Writes `evaluation/card.md` and `evaluation/plots/*.png` of a run from its artifacts; returns the card's path.

  Needs `evaluation/results.json` (raises ResultsError without it); a section whose artifact is missing says so in a sentence.
  """
  run = pathlib.Path(run_directory)
  folder = run / "evaluation"
  results = load_results(folder / "results.json")
  captions = _write_plots(results, run, folder / "plots")
  config = _read(run, "config.json") or {}
  sections = {
    "Re-ranking": _main_section(results),
    "Hacking monitors": _monitors_section(results),
    "Presentations": _presentations_section(results),
    "Segments": _segments_section(results),
    "Evidence": _evidence_section(results),
    "Reasons": reasons_table(results),
    "Compression": compression_table(results["orders"], results["paired"], results["cost"]),
    "Data": _data_section(results, run),
    "Semantic IDs": _tokenizer_section(run),
    "Full catalogue": _retrieval_section(run),
    "Traces": _traces_section(run),
    "Cost": _cost_section(results, run),
    "Latency against quality": _latency_section(run),
    "Plots": "\n\n".join(f"**{caption}**\n\n![{caption}](plots/{name})" for name, caption in captions.items()),
    "How it was run": _provenance_section(results, run),
  }
  names = dict.fromkeys([config.get("name", run.resolve().name), results["dataset"]])  # one name where they are the same
  title = f"# {': '.join(map(escape_markdown, names))}, {_seeds(results)}"
  warning = [escape_markdown(text)] if (text := warn_of_reasons(results)) else []
  parts = [title, f"**{verdict(results)}**", *warning, *(f"## {name}\n\n{text}" for name, text in sections.items())]
  card = folder / "card.md"
  with replacing(card) as partial:  # the old one may be shared with another run
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
  return card


def render_console_table(results: Mapping[str, Any]) -> RenderableType:
  """The rankers with their paired intervals, and the monitors, as Rich tables that fit into 80 columns; last the verdict."""
  head, titles = f"{results['dataset']}, {_seeds(results)}: {results['n']:,} test {_slates(results['n'])}", _titles(results)
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
  for label in _MONITORS.values():
    monitors.add_column(label, justify="right")
  for name in sort_rankers(results["diagnostics"], titles):
    monitors.add_row(
      console_text(ranker_title(name, titles)), *(format_number(results["diagnostics"][name].get(key), ".3f") for key in _MONITORS)
    )
  return Group(rankers, monitors, Text(verdict(results), style="bold"))
