"""Whether a run that repeats another gives its numbers, ranker by ranker and metric by metric.

The rule. A metric is `equal` where it is so bit for bit on every test slate. Otherwise it `agrees` where the two means differ by no more
than a tolerance, and `differs` beyond it. The tolerance is the larger of two numbers that the metric gives itself:

- half the width of the 95 % bootstrap interval of its mean in the run that is repeated, whose users are resampled. Where the repetition was
  tested on other slates, the two means are independent, and it is the root of the sum of squares of both half widths;
- where that run is one of several seeds of its variant, 1.96 √2 s, with s the standard deviation of the metric's means over the seeds: what
  two trainings with other draws exceed once in twenty times.

Without either, as where all slates are of one user and there is one seed, the verdict on what is not equal is `untold`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from gr2_jax.evaluation.paired import RESAMPLES, paired_bootstrap
from gr2_jax.evaluation.per_slate import PerSlate, have_same_slates
from gr2_jax.evaluation.results import mean_metrics
from gr2_jax.reports.names import TABLE_METRICS, metric_title, ranker_title, sort_rankers
from gr2_jax.reports.tables import TABLE_STYLE, console_text, escape_markdown, format_number, markdown_table

_SEEDS = 1.96 * math.sqrt(2)
_STYLES = {"equal": "green", "agrees": "", "differs": "bold red", "untold": "dim"}
_NOTE = (
  "=: equal bit for bit on every test slate. Otherwise the value here minus the one there, and the tolerance behind ±: half the width of "
  "the metric's own 95 % interval there, or what two of its seeds differ by, whichever is more. !: outside of it; ?: there is none."
)


def compare_repetition(there: PerSlate, here: PerSlate, seeds: Sequence[PerSlate] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
  """`{"same_slates", "n", "seeds", "rankers": {NAME: {METRIC: {"there", "here", "difference", "tolerance", "verdict"}}}, "missing",
  "added", "counts"}` of a run that was repeated, `there`, and its repetition.

  `seeds`: all runs of the variant, the repeated one among them, where there are several. `missing` and `added`: rankers that only one has.
  """
  same = have_same_slates(there, here)
  names = [name for name in there.rankers if name in here.rankers]
  widths = _half_widths(there, names, resamples)
  if not same and widths is not None:
    others = _half_widths(here, names, resamples)
    widths = None if others is None else {key: math.hypot(width, others.get(key, 0.0)) for key, width in widths.items()}
  means = {side: {name: mean_metrics(of.rankers[name], of.weights) for name in names} for side, of in (("there", there), ("here", here))}
  rankers: dict[str, dict[str, Any]] = {}
  for name in names:
    rankers[name] = {}
    for metric, before in means["there"][name].items():
      if (now := means["here"][name].get(metric)) is None:
        continue
      equal = same and np.array_equal(there.rankers[name][metric], here.rankers[name][metric])
      allowed = (None if widths is None else widths[name, metric], _spread(seeds, name, metric))
      known = [tolerance for tolerance in allowed if tolerance is not None]
      tolerance = max(known, default=None)
      verdict = "equal" if equal else "untold" if tolerance is None else "agrees" if abs(now - before) <= tolerance else "differs"
      rankers[name][metric] = {"there": before, "here": now, "difference": now - before, "tolerance": tolerance, "verdict": verdict}
  counts = Counter(of["verdict"] for metrics in rankers.values() for of in metrics.values())
  return {
    "same_slates": same,
    "n": {"there": len(there.users), "here": len(here.users)},
    "seeds": len(seeds),
    "rankers": rankers,
    "missing": [name for name in there.rankers if name not in here.rankers],
    "added": [name for name in here.rankers if name not in there.rankers],
    "counts": {verdict: counts[verdict] for verdict in _STYLES},
  }


def _half_widths(of: PerSlate, names: Sequence[str], resamples: int) -> dict[tuple[str, str], float] | None:
  """(ranker, metric) -> half the width of the interval of its mean; None where one user leaves nothing to resample."""
  keys = [(name, metric) for name in names for metric in of.rankers[name]]
  if len(set(of.users)) < 2 or not keys:
    return None
  values = np.stack([of.rankers[name][metric] for name, metric in keys], axis=1)
  found = paired_bootstrap(values, np.zeros_like(values), seed=0, resamples=resamples, clusters=of.users, weights=of.weights)
  return {key: float(high - low) / 2 for key, low, high in zip(keys, found.delta_low, found.delta_high, strict=True)}


def _spread(seeds: Sequence[PerSlate], name: str, metric: str) -> float | None:
  """By how much two trainings of other seeds may differ; None for fewer than two seeds that have the metric."""
  means = [mean_metrics(of.rankers[name], of.weights)[metric] for of in seeds if metric in of.rankers.get(name, {})]
  return _SEEDS * float(np.std(means, ddof=1)) if len(means) > 1 else None


def judge_repetition(repetition: Mapping[str, Any], titles: Mapping[str, str]) -> str:
  """What came of it in a sentence or two, of `compare_repetition` with `expected_equal` (nothing differs but the run's folder)."""
  counts = repetition["counts"]
  total = sum(counts.values())
  of = f"{total:,} metrics of {len(repetition['rankers'])} rankers"
  told = [
    f"{name} {'not measured here' if key == 'missing' else 'measured here only'}"
    for key in ("missing", "added")
    for name in repetition[key]
  ]
  if counts["equal"] == total and not told:
    return f"Repeated bit for bit: all {of} are equal on each of {repetition['n']['here']:,} test slates."
  parts = [f"{counts['equal']:,} of {of} are equal bit for bit, {counts['agrees']:,} more agree within their tolerance"]
  if counts["untold"]:
    parts.append(f"{counts['untold']:,} have no tolerance (one user, one seed)")
  if not repetition["same_slates"]:
    parts.append("the test slates are not the same")
  text = "; ".join([*parts, *told]) + "."
  if counts["differs"]:
    outside = [
      f"{ranker_title(name, titles)} {metric_title(metric)} {of['there']:.4f} there, {of['here']:.4f} here, tolerance {of['tolerance']:.4f}"
      for name, metrics in repetition["rankers"].items()
      for metric, of in metrics.items()
      if of["verdict"] == "differs"
    ]
    more = f" and {len(outside) - 3:,} more" if len(outside) > 3 else ""
    text = f"DOES NOT AGREE in {counts['differs']:,}: {'; '.join(outside[:3])}{more}. {text}"
  if repetition["expected_equal"]:
    text = f"NOT REPEATED BIT FOR BIT, though configuration, data, code, versions and machine are those of the file. {text}"
  return text


def repetition_page(repetition: Mapping[str, Any], titles: Mapping[str, str]) -> str:
  """The Markdown of `RUN/evaluation/repetition.md`."""
  differing = [f"- {kind}: {escape_markdown(line)}" for kind, lines in repetition["differences"].items() for line in lines]
  header = ["ranker", *TABLE_METRICS.values()]
  rows = [
    [escape_markdown(ranker_title(name, titles)), *(f"{format_number(of.get('here'))}<br>{_write(of)}" if of else "–" for of in cells)]
    for name, cells in _rows(repetition, titles)
  ]
  parts = [
    f"# Repetition of {escape_markdown(repetition['file'])}, {escape_markdown(repetition['run'])}",
    escape_markdown(judge_repetition(repetition, titles)),
    f"## What differed before training\n\n{chr(10).join(differing) or 'Nothing.'}",
    f"## Metric by metric\n\n{markdown_table(header, rows)}\n\n{_NOTE} repetition.json has all metrics.",
  ]
  return "\n\n".join(parts) + "\n"


def render_repetition(repetition: Mapping[str, Any], titles: Mapping[str, str]) -> Table:
  """Ranker by ranker, as a Rich table that fits into 100 columns."""
  table = Table(title="this run against the file", caption=_NOTE, **TABLE_STYLE)
  table.add_column("ranker")
  for metric in TABLE_METRICS.values():
    table.add_column(metric, justify="right")
  for name, cells in _rows(repetition, titles):
    table.add_row(console_text(ranker_title(name, titles)), *(Text(_write(of), _STYLES[of["verdict"]] if of else "dim") for of in cells))
  return table


def _rows(repetition: Mapping[str, Any], titles: Mapping[str, str]) -> list[tuple[str, list[Mapping[str, Any]]]]:
  rankers = repetition["rankers"]
  return [(name, [rankers[name].get(metric, {}) for metric in TABLE_METRICS]) for name in sort_rankers(rankers, titles)]


def _write(of: Mapping[str, Any]) -> str:
  if not of or of["verdict"] == "equal":
    return "=" if of else "–"
  if of["verdict"] == "untold":
    return f"{of['difference']:+.4f} ?"
  return f"{of['difference']:+.4f} ± {of['tolerance']:.4f}" + ("" if of["verdict"] == "agrees" else " !")
