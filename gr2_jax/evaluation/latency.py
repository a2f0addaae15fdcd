"""Latency against quality: the points of `latency.json` as a plot and a table, and which of them no other point beats."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from gr2_jax.evaluation.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from gr2_jax.evaluation.tables import format_number, markdown_table

_COLOURS = {"reason": BLUE, "direct": ORANGE, "score": GREEN}
_MARKERS = ("o", "s", "^", "D", "v")


def pareto_front(points: Sequence[Mapping[str, float]]) -> list[int]:
  """Places of the points that no other point beats in median latency and R@1 without being worse in either; the fastest first."""
  order = sorted(range(len(points)), key=lambda i: (points[i]["p50_ms"], -points[i]["recall@1"]))
  front: list[int] = []
  for place in order:
    if not front or points[place]["recall@1"] > points[front[-1]]["recall@1"]:
      front.append(place)
  return front


def point_title(point: Mapping[str, Any], runs: Sequence[str]) -> str:
  """`score`, `reason, 3 presentations`; with the model's size, or the run where sizes are the same, when there are several runs."""
  title = point["mode"] + (f", {point['presentations']} presentations" if point["presentations"] > 1 else "")
  return title if len(runs) < 2 else f"{title}, {point['preset']} ({point['run'].rstrip('/').split('/')[-1]})"


def _runs(latency: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(point["run"] for point in latency["points"]))


def plot_latency(latency: Mapping[str, Any]) -> Figure:
  """Each point at its median latency, a whisker to its 95th percentile and its interval of R@1; the Pareto front as a line."""
  points, runs = latency["points"], _runs(latency)
  figure = Figure(figsize=(7.2, 4.4), layout="constrained")
  ax = figure.subplots()
  for point in points:
    colour = _COLOURS.get(point["mode"], PURPLE)
    median, quality = point["p50_ms"], point["recall@1"]
    low, high = point["ci95"]
    ax.errorbar(
      median,
      quality,
      yerr=[[quality - low], [high - quality]],
      xerr=[[0], [max(point["p95_ms"] - median, 0)]],
      color=colour,
      marker=_MARKERS[runs.index(point["run"]) % len(_MARKERS)],
      markerfacecolor=colour if point["presentations"] == 1 else "white",
      linewidth=1,
      capsize=2,
      linestyle="none",
      label=point_title(point, runs),
    )
  front = [points[place] for place in pareto_front(points)]
  ax.plot([p["p50_ms"] for p in front], [p["recall@1"] for p in front], color=GREY, linewidth=1, linestyle="--", label="Pareto front")
  ax.axhline(latency["upstream"]["recall@1"], color="black", linewidth=0.8, linestyle=":", label="upstream order")
  ax.set_xscale("log")
  ax.set_xlabel("milliseconds a request, sent one after the other: median, whisker to the 95th percentile")
  ax.set_ylabel("R@1 with its 95 % interval")
  ax.spines[["top", "right"]].set_visible(False)
  figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
  return figure


def latency_table(latency: Mapping[str, Any]) -> str:
  """The points as Markdown, those of the front marked."""
  points, runs = latency["points"], _runs(latency)
  front = set(pareto_front(points))
  rows = []
  for place, point in enumerate(points):
    quality = f"{format_number(point['recall@1'])} [{format_number(point['ci95'][0])}, {format_number(point['ci95'][1])}]"
    times = (format_number(point[name], ",.1f") for name in ("p50_ms", "p95_ms"))
    rows.append([point_title(point, runs), *times, quality, "yes" if place in front else ""])
  head = f"Device: {latency['machine']['device']}. Upstream order: R@1 {format_number(latency['upstream']['recall@1'])}."
  table = markdown_table(["mode", "p50, ms", "p95, ms", "R@1", "on the Pareto front"], rows)
  return f"{head} Requests were sent one after the other.\n\n{table}"
