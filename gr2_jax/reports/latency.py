"""Latency against quality: the points of `latency.json` as a plot and a table, and which of them no other point beats."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gr2_jax.reports.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from gr2_jax.reports.tables import format_number, markdown_table

FULL_HISTORIES = "full"  # what a point says of histories that are not compressed
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
_MARKERS = {"reason": "o", "direct": "s", "score": "^"}
_KEY_ROWS = 26  # of the plot's key; more points have further columns


def pareto_front(points: Sequence[Mapping[str, float]]) -> list[int]:
  """Places of the points that no other point beats in median latency and R@1 without being worse in either; the fastest first."""
  order = sorted(range(len(points)), key=lambda i: (points[i]["p50_ms"], -points[i]["recall@1"]))
  front: list[int] = []
  for place in order:
    if not front or points[place]["recall@1"] > points[front[-1]]["recall@1"]:
      front.append(place)
  return front


def _sorted_points(latency: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The fastest first: the order of the plot's numbers and of the table."""
  return sorted(latency["points"], key=lambda point: point["p50_ms"])


def _run_titles(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """How each run is called: by its model's size, and by its folder too where two runs are of one size."""
  presets = {point["run"]: point["preset"] for point in points}
  sizes = list(presets.values())
  return {run: size if sizes.count(size) == 1 else f"{size} ({run.rstrip('/').split('/')[-1]})" for run, size in presets.items()}


def _policy_title(point: Mapping[str, Any]) -> str:
  """As the point says; the stage's name where it says nothing."""
  return str(point.get("title", point["stage"]))


def _mode_title(point: Mapping[str, Any]) -> str:
  return str(point["mode"]) + (f" ×{point['presentations']}" if point["presentations"] > 1 else "")


def _compressor(point: Mapping[str, Any]) -> str:
  return str(point.get("compressor", FULL_HISTORIES))  # files of the versions without compressors have none


def plot_latency(latency: Mapping[str, Any]) -> Figure:
  """Each point at its median latency, a whisker to its 95th percentile and its interval of R@1; the Pareto front as a line.

  Colours tell the runs apart, or the policies of one run; shapes the modes; open ones have compressed histories. Numbers are those of the
  key, the fastest first.
  """
  points = _sorted_points(latency)
  runs = _run_titles(points)

  def told(point: Mapping[str, Any]) -> str:
    return _policy_title(point) if len(runs) == 1 else runs[point["run"]]

  colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(dict.fromkeys(map(told, latency["points"])))}
  columns = -(-len(points) // _KEY_ROWS)
  width, height = 6.6 + (2.1 if len(runs) == 1 else 2.5) * columns, max(4.6, 0.6 + 0.18 * -(-(len(points) + 2) // columns))  # inches
  figure = Figure(figsize=(width, height))
  ax = figure.add_axes((0.7 / width, 0.55 / height, 5.7 / width, (height - 0.7) / height))
  handles = [_draw_point(ax, point, colours[told(point)]) for point in points]
  for number, (point, handle) in enumerate(zip(points, handles, strict=True), start=1):
    parts = [_policy_title(point), _mode_title(point), *([_compressor(point)] if _compressor(point) != FULL_HISTORIES else [])]
    handle.set_label(f"{number}  " + ", ".join(([runs[point["run"]]] if len(runs) > 1 else []) + parts))
  front = [points[place] for place in pareto_front(points)]
  line = ax.plot([p["p50_ms"] for p in front], [p["recall@1"] for p in front], color=GREY, linewidth=1, linestyle="--", zorder=1)[0]
  line.set_label("Pareto front")
  upstream = ax.axhline(latency["upstream"]["recall@1"], color="black", linewidth=0.8, linestyle=":", label="upstream order", zorder=1)
  _scale(ax, points)
  _number(ax, points)
  figure.legend(
    handles=[*handles, line, upstream],
    loc="upper left",
    bbox_to_anchor=(6.5 / width, 1 - 0.05 / height),
    ncols=columns,
    frameon=False,
    fontsize=8,
    title=f"colour: {'policy' if len(runs) == 1 else 'run'}, shape: mode,\nopen: compressed history",
    title_fontsize=7,
    alignment="left",
  )
  return figure


def _draw_point(ax: Axes, point: Mapping[str, Any], colour: str) -> Line2D:
  median, quality = point["p50_ms"], point["recall@1"]
  ax.plot([median, median], point["ci95"], color=colour, alpha=0.25, linewidth=1, zorder=2)
  ax.plot([median, max(point["p95_ms"], median)], [quality, quality], color=colour, alpha=0.4, linewidth=1, zorder=2)
  return ax.plot(
    median,
    quality,
    color=colour,
    marker=_MARKERS.get(point["mode"], "D"),
    markerfacecolor=colour if _compressor(point) == FULL_HISTORIES else "white",
    markersize=5.5,
    linestyle="none",
    zorder=3,
  )[0]


def _scale(ax: Axes, points: Sequence[Mapping[str, Any]]) -> None:
  ax.set_xscale("log")
  ax.set_xlim(0.8 * min(point["p50_ms"] for point in points), 1.15 * max(point["p95_ms"] for point in points))
  ax.margins(y=0.08)
  low, high = ax.get_xlim()
  for bases in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(10, 100) / 10):  # finer ones where there are few
    shown = [base * 10**power for power in range(-2, 7) for base in bases if low <= base * 10**power <= high]
    if len(shown) > 2:
      break
  ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
  ax.set_xticks([], minor=True)
  ax.set_xlabel("ms a request, one after the other: median, whisker to the 95th percentile")
  ax.set_ylabel("R@1 with its 95 % interval")
  ax.spines[["top", "right"]].set_visible(False)
  ax.grid(color="#eeeeee", linewidth=0.6)
  ax.set_axisbelow(True)


def _number(ax: Axes, points: Sequence[Mapping[str, Any]]) -> None:
  """Writes each point's number beside it, where it hides the least of other points and numbers; further away with a thin line."""
  ax.set_ylim(*ax.get_ylim())  # from here on nothing moves
  scale = 72 / ax.figure.dpi
  places = scale * ax.transData.transform([(point["p50_ms"], point["recall@1"]) for point in points])
  angles = np.deg2rad(np.arange(45, 405, 30))
  offsets = np.concatenate([radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) for radius in (9, 15, 22, 30)])
  box = scale * np.asarray(ax.get_window_extent().get_points())
  taken = list(places)
  for number, (point, place) in enumerate(zip(points, places, strict=True), start=1):
    spots = place + offsets
    distance = np.min(np.linalg.norm((spots[:, None] - np.asarray(taken)) / (1.3, 1.0), axis=2), axis=1)  # numbers are wide
    inside = ((spots > box[0] + 4) & (spots < box[1] - 4)).all(axis=1)
    good = np.flatnonzero((distance >= 8) & inside)
    chosen = int(good[0]) if len(good) else int(np.argmax(np.where(inside, distance, 0)))
    taken.append(spots[chosen])
    far = np.linalg.norm(offsets[chosen]) > 12
    ax.annotate(
      str(number),
      (point["p50_ms"], point["recall@1"]),
      offsets[chosen],
      textcoords="offset points",
      ha="center",
      va="center",
      fontsize=7.5,
      arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3} if far else None,
      zorder=4,
    )


def latency_table(latency: Mapping[str, Any]) -> str:
  """The points as Markdown, the fastest first, numbered as in the plot, those of the front marked."""
  points = _sorted_points(latency)
  runs, front = _run_titles(points), set(pareto_front(points))
  header = ["", "policy", "mode", "history", "its tokens", "p50, ms", "p95, ms", "R@1", "on the Pareto front"]
  rows = []
  for place, point in enumerate(points):
    quality = f"{format_number(point['recall@1'])} [{format_number(point['ci95'][0])}, {format_number(point['ci95'][1])}]"
    times = [format_number(point[name], ",.2f") for name in ("p50_ms", "p95_ms")]
    what = [_policy_title(point), _mode_title(point), _compressor(point), format_number(point.get("history_tokens"), ",.1f")]
    rows.append([place + 1, *what, *times, quality, "yes" if place in front else ""])
  if len(runs) > 1:
    header.insert(1, "run")
    for row, point in zip(rows, points, strict=True):
      row.insert(1, runs[point["run"]])
  head = f"Device: {latency['machine']['device']}. Upstream order: R@1 {format_number(latency['upstream']['recall@1'])}."
  note = "Requests were sent one after the other; compressed histories were those of users who ask again."
  return f"{head} {note}\n\n{markdown_table(header, rows)}"
