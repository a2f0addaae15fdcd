"""What an ablation asks of its variants: any two orders compared in pairs, the share of a teacher's gain that students keep, and whose
traces were accepted.

An order is named VARIANT/ORDER, as in `opd_tiny/policy`. COMPARISONS: title -> pairs (order, the order it is compared with). SHARES: the
teacher's order -> the students' orders.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gr2_jax.evaluation.metrics import METRICS
from gr2_jax.evaluation.paired import share_of_gain
from gr2_jax.evaluation.per_slate import PerSlate
from gr2_jax.evaluation.results import BASELINE, compare_orders
from gr2_jax.reports.names import TABLE_METRICS, order_title
from gr2_jax.reports.tables import format_lift, format_number, markdown_table

Tested = Mapping[str, Mapping[int, PerSlate]]  # variant -> seed -> metrics of each test slate
_SHOWN = ("recall@1", "ndcg@3")
_Z95 = 1.959964


def pool_orders(tested: Tested, names: Sequence[str]) -> tuple[list[dict[str, np.ndarray]], np.ndarray] | None:
  """Metrics of the named orders on the slates of all their common seeds, and those slates' clusters `SEED/USER`.

  None where a variant or an order is missing, or where they were not tested on the same slates.
  """
  named = [name.split("/") for name in names]
  if any(variant not in tested for variant, _ in named):
    return None
  seeds = [seed for seed in tested[named[0][0]] if all(seed in tested[variant] for variant, _ in named)]
  of_seeds = [[tested[variant][seed] for seed in seeds] for variant, _ in named]
  same = all(np.array_equal(one.users, first.users) for of in of_seeds for one, first in zip(of, of_seeds[0], strict=True))
  if not seeds or not same or any(order not in of.orders for (_, order), ofs in zip(named, of_seeds, strict=True) for of in ofs):
    return None
  pooled = [
    {metric: np.concatenate([of.orders[order][metric] for of in ofs]) for metric in METRICS}
    for (_, order), ofs in zip(named, of_seeds, strict=True)
  ]
  return pooled, np.concatenate([[f"{seed}/{user}" for user in of.users] for seed, of in zip(seeds, of_seeds[0], strict=True)])


def compare_variants(tested: Tested, comparisons: Mapping[str, Sequence[tuple[str, str]]], resamples: int) -> dict[str, Any]:
  """`{title: [{"order", "base", "n", "values": {METRIC: mean}, "paired": {METRIC: paired difference}}]}` of pairs on the same slates."""
  found: dict[str, Any] = {}
  for title, pairs in comparisons.items():
    for pair in pairs:
      pooled = pool_orders(tested, pair)
      if pooled is None:
        continue
      (of, base), clusters = pooled
      differences = compare_orders({"of": of, "base": base}, [("of", "base")], clusters, seed=0, resamples=resamples)
      values = {metric: float(column.mean()) for metric, column in of.items()}
      line = {"order": pair[0], "base": pair[1], "n": len(clusters), "values": values, "paired": differences.get("of_vs_base", {})}
      found.setdefault(title, []).append(line)
  return found


def compute_shares(tested: Tested, shares: Mapping[str, Sequence[str]], resamples: int) -> list[dict[str, Any]]:
  """`{"order", "teacher", METRIC: {"share", "ci95"}}` of each student's order: its part of the teacher's gain over the upstream order.

  Share and interval are null where the teacher's gain may be none.
  """
  found = []
  for teacher, students in shares.items():
    for student in students:
      pooled = pool_orders(tested, (student, teacher, f"{teacher.split('/')[0]}/{BASELINE}"))
      if pooled is None:
        continue
      columns, clusters = pooled
      if len(set(clusters)) < 2:
        continue
      stacked = [np.stack([of[metric] for metric in METRICS], axis=1) for of in columns]
      of = share_of_gain(*stacked, seed=0, resamples=resamples, clusters=clusters)
      numbers = {metric: _share(*(float(x[place]) for x in of)) for place, metric in enumerate(METRICS)}
      found.append({"order": student, "teacher": teacher, **numbers})
  return found


def _share(share: float, low: float, high: float) -> dict[str, Any]:
  return {"share": share, "ci95": [low, high]} if math.isfinite(share) else {"share": None, "ci95": None}


def count_acceptance(runs: Iterable[pathlib.Path]) -> dict[str, dict[str, list[int]]]:
  """`{sampling: {"asked", "accepted"}}`, slates by the target's upstream rank, over all runs; traces that runs share count once."""
  reports = {}
  for run in runs:
    path = run / "traces" / "acceptance.json"
    if path.exists():
      fingerprint = json.loads((run / "traces" / "done.json").read_text(encoding="utf-8"))["fingerprint"]
      reports[fingerprint] = json.loads(path.read_text(encoding="utf-8"))
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
  share, spread = successes / trials, _Z95**2 / trials
  centre, half = share + spread / 2, math.sqrt(spread * (share * (1 - share) + spread / 4))
  return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


# Sections of the page; each is left out where there is nothing to tell.


def comparison_sections(sweep: Mapping[str, Any]) -> dict[str, str]:
  """Title -> Markdown of what `sweep["comparisons"]`, `["shares"]` and `["acceptance"]` hold."""
  sections = {title: _pairs_table(lines) for title, lines in sweep["comparisons"].items()}
  if sweep["shares"]:
    sections["Share of the teacher's gain that a student keeps"] = _shares_table(sweep["shares"])
  if sweep["acceptance"]:
    sections["Which slates have an accepted trace"] = _acceptance_table(sweep["acceptance"])
  return sections


def comparison_differences(sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """What `plots.plot_differences` draws of `sweep["comparisons"]`."""
  return {
    title: {f"{_title(of['order'])} – {_title(of['base'])}": of["paired"] for of in lines} for title, lines in sweep["comparisons"].items()
  }


def _title(name: str) -> str:
  variant, order = name.split("/")
  return f"{variant.replace('_', ' ')}: {order_title(order)}"


def _pairs_table(lines: Sequence[Mapping[str, Any]]) -> str:
  header = ["order", "against", *(label for metric in _SHOWN for label in (TABLE_METRICS[metric], "difference", "p"))]
  rows = []
  for of in lines:
    cells = []
    for metric in _SHOWN:
      paired = of["paired"].get(metric)
      cells += [format_number(of["values"][metric]), format_lift(paired), format_number(paired and paired["p"])]
    rows.append([_title(of["order"]), _title(of["base"]), *cells])
  return markdown_table(header, rows)


def _shares_table(lines: Sequence[Mapping[str, Any]]) -> str:
  def cell(of):
    if of["share"] is None:
      return "–"
    low, high = of["ci95"]
    return f"{100 * of['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"

  rows = [[_title(of["order"]), _title(of["teacher"]), *(cell(of[metric]) for metric in TABLE_METRICS)] for of in lines]
  note = (
    "(student - upstream) / (teacher - upstream) on the same slates, with percentile intervals over resampled users; – where the teacher's "
    "own interval holds 0."
  )
  return markdown_table(["student", "teacher", *TABLE_METRICS.values()], rows) + "\n\n" + note


def _acceptance_table(acceptance: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
  def cell(asked, accepted):
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
