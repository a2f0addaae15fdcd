"""What an ablation asks of its variants: any two rankers compared in pairs, fronts of two metrics, the share of a teacher's gain that
students keep, and whose traces were accepted.

A ranker is named VARIANT/RANKER, as in `opd_tiny/policy`. COMPARISONS: title -> pairs (ranker, the ranker it is compared with), in R@1 and
N@3 or in the metrics that SHOWN has for that title. FRONTS: title -> {"axes": two metrics, "series": label -> rankers}. SHARES: the teacher
-> the students.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.paired import share_of_gain
from gr2_jax.evaluation.per_slate import PerSlate, Pooled, have_same_slates, pool_seeds
from gr2_jax.evaluation.results import BASELINE, compare_rankers, mean_metrics
from gr2_jax.reports.names import TABLE_METRICS, metric_title, ranker_title
from gr2_jax.reports.tables import escape_markdown, format_lift, format_number, format_share, markdown_table
from gr2_jax.runs.run_file import RunRecord

Tested = Mapping[str, Mapping[int, PerSlate]]  # variant -> seed -> metrics of each test slate
_SHOWN = ("recall@1", "ndcg@3")
_PAIRS_NOTE = (
  "difference: relative, of the ranker to the one that it stands against, on the same slates, with its paired 95 % interval; p: two-sided, "
  "of there being none; n: slates of all seeds that both have."
)


def pool_rankers(tested: Tested, names: Sequence[str]) -> Pooled | None:
  """Metrics of the named rankers, `VARIANT/RANKER`, on the slates of all their common seeds.

  None where a variant or a ranker is missing, or where they were not tested on the same slates.
  """
  named = [name.split("/") for name in names]
  if any(variant not in tested for variant, _ in named):
    return None
  seeds = [seed for seed in tested[named[0][0]] if all(seed in tested[variant] for variant, _ in named)]
  of_names = [{seed: tested[variant][seed] for seed in seeds} for variant, _ in named]
  first = of_names[0]
  if not seeds or not all(have_same_slates(of[seed], first[seed]) for of in of_names for seed in seeds):
    return None
  if any(ranker not in of[seed].rankers for (_, ranker), of in zip(named, of_names, strict=True) for seed in seeds):
    return None
  pooled = [pool_seeds(of, [ranker]) for (_, ranker), of in zip(named, of_names, strict=True)]
  metrics = {name: of.rankers[ranker] for name, (_, ranker), of in zip(names, named, pooled, strict=True)}
  return Pooled(metrics, pooled[0].clusters, pooled[0].weights)


def compare_variants(tested: Tested, comparisons: Mapping[str, Sequence[tuple[str, str]]], resamples: int) -> dict[str, Any]:
  """`{title: [{"order", "base", "n", "values": {METRIC: mean}, "paired": {METRIC: paired difference}}]}` of pairs on the same slates."""
  found: dict[str, Any] = {}
  for title, pairs in comparisons.items():
    for name, base in pairs:
      pooled = pool_rankers(tested, (name, base))
      if pooled is None:
        continue
      metrics, clusters, weights = pooled
      differences = compare_rankers(metrics, [(name, base)], clusters, seed=0, resamples=resamples, weights=weights)
      values = mean_metrics(metrics[name], weights)
      line = {"order": name, "base": base, "n": len(clusters), "values": values, "paired": differences.get(f"{name}_vs_{base}", {})}
      found.setdefault(title, []).append(line)
  return found


def compute_fronts(tested: Tested, fronts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """`{title: {"axes", "series": {label: [{"order", METRIC: mean of both axes}]}}}` of the rankers that were measured in both metrics."""
  found: dict[str, Any] = {}
  for title, front in fronts.items():
    series: dict[str, list[dict[str, Any]]] = {}
    for label, names in front["series"].items():
      pools = {name: pool_rankers(tested, (name,)) for name in names}
      for name, pooled in pools.items():
        if pooled is not None and all(metric in pooled.rankers[name] for metric in front["axes"]):
          means = mean_metrics(pooled.rankers[name], pooled.weights)
          series.setdefault(label, []).append({"order": name, **{metric: means[metric] for metric in front["axes"]}})
    if series:
      found[title] = {"axes": list(front["axes"]), "series": series}
  return found


def compute_shares(tested: Tested, shares: Mapping[str, Sequence[str]], resamples: int) -> list[dict[str, Any]]:
  """`{"order", "teacher", METRIC: {"share", "ci95"}}` of each student: its part of the teacher's gain over the upstream order.

  Share and interval are null where the teacher's gain may be none, and where there is one user, who leaves nothing to resample.
  """
  found = []
  for teacher, students in shares.items():
    base = f"{teacher.split('/')[0]}/{BASELINE}"
    for student in students:
      pooled = pool_rankers(tested, (student, teacher, base))
      if pooled is None:
        continue
      if len(set(pooled.clusters)) < 2:
        found.append({"order": student, "teacher": teacher, **dict.fromkeys(METRICS, _share(math.nan, math.nan, math.nan))})
        continue
      stacked = [np.stack([pooled.rankers[name][metric] for metric in METRICS], axis=1) for name in (student, teacher, base)]
      of = share_of_gain(*stacked, seed=0, resamples=resamples, clusters=pooled.clusters, weights=pooled.weights)
      numbers = {metric: _share(*(float(x[place]) for x in of)) for place, metric in enumerate(METRICS)}
      found.append({"order": student, "teacher": teacher, **numbers})
  return found


def _share(share: float, low: float, high: float) -> dict[str, Any]:
  return {"share": share, "ci95": [low, high]} if math.isfinite(share) else {"share": None, "ci95": None}


def count_acceptance(runs: Iterable[RunRecord]) -> dict[str, dict[str, list[int]]]:
  """`{sampling: {"asked", "accepted"}}`, slates by the target's upstream rank, over all runs; traces that runs share count once."""
  reports = {run.stages["traces"]["fingerprint"]: run.acceptance for run in runs if run.acceptance is not None and "traces" in run.stages}
  found: dict[str, dict[str, list[int]]] = {}
  for report in reports.values():
    of = found.setdefault(report["sampling"], {"asked": [], "accepted": []})
    for name, total in of.items():
      counts = report[f"{name}_by_upstream_rank"]
      width = max(len(total), len(counts))
      of[name] = (np.pad(total, (0, width - len(total))).astype(int) + np.pad(counts, (0, width - len(counts)))).tolist()
  return found


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
  """95 % interval of a probability (Wilson 1927)."""
  interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
  return float(interval.low), float(interval.high)


# Sections of the page; each is left out where there is nothing to tell.


def comparison_sections(sweep: Mapping[str, Any]) -> dict[str, str]:
  """Title -> Markdown of what `sweep["comparisons"]`, `["shares"]` and `["acceptance"]` hold."""
  titles = sweep.get("titles", {})
  sections = {
    title: _pairs_table(lines, titles, sweep.get("shown", {}).get(title, _SHOWN)) for title, lines in sweep["comparisons"].items()
  }
  sections |= {title: _front_table(front, titles) for title, front in sweep.get("fronts", {}).items()}
  if sweep["shares"]:
    sections["Share of the teacher's gain that a student keeps"] = _shares_table(sweep["shares"], titles)
  if sweep["acceptance"]:
    sections["Which slates have an accepted trace"] = _acceptance_table(sweep["acceptance"])
  return sections


def comparison_differences(sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """What `plots.plot_differences` draws of `sweep["comparisons"]`."""
  titles = sweep.get("titles", {})
  return {
    title: {f"{order_title(of['order'], titles)} – {order_title(of['base'], titles)} (n = {of['n']:,})": of["paired"] for of in lines}
    for title, lines in sweep["comparisons"].items()
  }


def order_title(name: str, titles: Mapping[str, str]) -> str:
  """The name that a reader sees of `VARIANT/RANKER`."""
  variant, ranker = name.split("/")
  return f"{variant.replace('_', ' ')}: {ranker_title(ranker, titles)}"


def _front_table(front: Mapping[str, Any], titles: Mapping[str, str]) -> str:
  header = ["series", "ranker", *(metric_title(metric) for metric in front["axes"])]
  rows = [
    [escape_markdown(label), escape_markdown(order_title(of["order"], titles)), *(format_number(of[metric]) for metric in front["axes"])]
    for label, points in front["series"].items()
    for of in points
  ]
  return markdown_table(header, rows)


def _pairs_table(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str], shown: Sequence[str]) -> str:
  header = ["ranker", "against", "n", *(label for metric in shown for label in (metric_title(metric), "difference", "p"))]
  rows = []
  for of in lines:
    cells = []
    for metric in shown:
      paired = of["paired"].get(metric)
      cells += [format_number(of["values"].get(metric)), format_lift(paired), format_number(paired and paired["p"])]
    names = (escape_markdown(order_title(of[side], titles)) for side in ("order", "base"))
    rows.append([*names, f"{of['n']:,}", *cells])
  return markdown_table(header, rows) + "\n\n" + _PAIRS_NOTE


def _shares_table(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
  names = [[escape_markdown(order_title(of[side], titles)) for side in ("order", "teacher")] for of in lines]
  rows = [[*pair, *(format_share(of[metric]) for metric in TABLE_METRICS)] for pair, of in zip(names, lines, strict=True)]
  note = (
    "(student - upstream) / (teacher - upstream) on the same slates, with percentile intervals over resampled users; – where the teacher's "
    "own interval holds 0, or all slates are of one user."
  )
  return markdown_table(["student", "teacher", *TABLE_METRICS.values()], rows) + "\n\n" + note


def _acceptance_table(acceptance: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
  def cell(asked: int, accepted: int) -> str:
    if not asked:
      return "–"
    low, high = wilson_interval(accepted, asked)
    return f"{accepted / asked:.3f} [{low:.3f}, {high:.3f}] of {asked:,}"

  width = max(len(of["asked"]) for of in acceptance.values())
  columns = [[cell(*pair) for pair in zip(of["asked"], of["accepted"], strict=True)] for of in acceptance.values()]
  rows = [[rank + 1, *(column[rank] if rank < len(column) else "–" for column in columns)] for rank in range(width)]
  means = [f"{name}: {_mean_rank(of['asked'])} of all, {_mean_rank(of['accepted'])} of the accepted" for name, of in acceptance.items()]
  table = markdown_table(["target's upstream rank", *(f"accepted, {name} sampling" for name in acceptance)], rows)
  return f"{table}\n\nWith Wilson's 95 % intervals. Mean rank of the target: {'; '.join(means)}."


def _mean_rank(counts: Sequence[int]) -> str:
  total = sum(counts)
  return format_number(sum(rank * count for rank, count in enumerate(counts, 1)) / total if total else None, ".2f")
