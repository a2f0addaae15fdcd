"""Latency against quality: the points of `latency.json` as a plot and a table, and which of them no other point beats."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gr2_jax.reports.plots import SERIES, UNDECIDED
from gr2_jax.reports.tables import ONE_USER, escape_markdown, format_number, markdown_table

FULL_HISTORIES = "full"  # what a point says of histories that are not compressed
_MARKERS = {"reason": "o", "direct": "s", "score": "^"}
_UNTRAINED = "not trained for it"
_KEY_ROWS = 26  # of the plot's key; more points have further columns


def pareto_front(points: Sequence[Mapping[str, float]]) -> list[int]:
  """Places of the points that no other point beats in median latency and R@1 without being worse in either; the fastest first."""
  order = sorted(range(len(points)), key=lambda i: (points[i]["p50_ms"], -points[i]["recall@1"]))
  front: list[int] = []
  for place in order:
    if not front or points[place]["recall@1"] > points[front[-1]]["recall@1"]:
      front.append(place)
  return front


def _find_front(latency: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> list[int]:
  """The front's places among `points`: those that are also better than the upstream order, which takes no time.

  A policy asked in a mode that it was not trained for stands outside, however well it does.
  """
  eligible = [place for place, point in enumerate(points) if _is_trained(point)]
  front = pareto_front([{"p50_ms": 0.0, **latency["upstream"]}, *(points[place] for place in eligible)])
  return [eligible[place - 1] for place in front if place]


def _is_trained(point: Mapping[str, Any]) -> bool:
  """Whether the policy was trained to answer in the point's mode; files of versions that did not know say nothing."""
  return bool(point.get("trained", True))


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

  Colours tell the runs apart, or the policies of one run; shapes the modes; open ones have compressed histories; pale ones answer in a mode
  that the policy was not trained for. Numbers are those of the
  key, the fastest first. The upstream order, with which the front begins, stands at 0 ms, left of the logarithmic scale.
  """
  points = _sorted_points(latency)
  runs = _run_titles(points)

  def told(point: Mapping[str, Any]) -> str:
    return _policy_title(point) if len(runs) == 1 else runs[point["run"]]

  colours = {name: SERIES[place % len(SERIES)] for place, name in enumerate(dict.fromkeys(map(told, latency["points"])))}
  columns = -(-len(points) // _KEY_ROWS)
  width, height = 6.6 + (2.1 if len(runs) == 1 else 2.5) * columns, max(4.6, 0.6 + 0.18 * -(-(len(points) + 2) // columns))  # inches
  figure = Figure(figsize=(width, height))
  ax = figure.add_axes((0.85 / width, 0.55 / height, 5.55 / width, (height - 0.7) / height))
  handles = [_draw_point(ax, point, colours[told(point)]) for point in points]
  for number, (point, handle) in enumerate(zip(points, handles, strict=True), start=1):
    parts = [_policy_title(point), _mode_title(point), *([_compressor(point)] if _compressor(point) != FULL_HISTORIES else [])]
    parts += [] if _is_trained(point) else [_UNTRAINED]
    handle.set_label(f"{number}  " + ", ".join(([runs[point["run"]]] if len(runs) > 1 else []) + parts))
  zero, base = 0.55 * min(point["p50_ms"] for point in points), latency["upstream"]["recall@1"]
  front = [(zero, base), *((points[place]["p50_ms"], points[place]["recall@1"]) for place in _find_front(latency, points))]
  line = ax.plot(*zip(*front, strict=True), color=UNDECIDED, linewidth=1, linestyle="--", zorder=1, label="Pareto front")[0]
  ax.axhline(base, color="black", linewidth=0.8, linestyle=":", zorder=1)
  upstream = ax.plot(zero, base, color="black", marker="*", markersize=9, linestyle=":", label="upstream order", zorder=3)[0]
  _scale(ax, points, zero)
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
  if point["ci95"] is not None:
    ax.plot([median, median], point["ci95"], color=colour, alpha=0.25, linewidth=1, zorder=2)
  ax.plot([median, max(point["p95_ms"], median)], [quality, quality], color=colour, alpha=0.4, linewidth=1, zorder=2)
  return ax.plot(
    median,
    quality,
    color=colour,
    marker=_MARKERS.get(point["mode"], "D"),
    markerfacecolor=colour if _compressor(point) == FULL_HISTORIES else "white",
    alpha=1.0 if _is_trained(point) else 0.4,
    markersize=5.5,
    linestyle="none",
    zorder=3,
  )[0]


def _scale(ax: Axes, points: Sequence[Mapping[str, Any]], zero: float) -> None:
  """A logarithmic axis of the points' times, and left of it the place that stands for 0 ms."""
  ax.set_xscale("log")
  low, high = 0.8 * min(point["p50_ms"] for point in points), 1.15 * max(point["p95_ms"] for point in points)
  ax.set_xlim(0.8 * zero, high)
  ax.margins(y=0.08)
  ax.axvspan(0.8 * zero, low, color="#f4f4f4", zorder=0)
  for bases in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(10, 100) / 10):  # finer ones where there are few
    shown = [base * 10**power for power in range(-2, 7) for base in bases if low <= base * 10**power <= high]
    if len(shown) > 2:
      break
  ax.set_xticks([zero, *shown], ["0", *(f"{tick:g}" for tick in shown)])
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
      arrowprops={"arrowstyle": "-", "color": UNDECIDED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3} if far else None,
      zorder=4,
    )


def latency_table(latency: Mapping[str, Any]) -> str:
  """The upstream order and the points as Markdown, the fastest first, numbered as in the plot, those of the front marked."""
  points = _sorted_points(latency)
  runs, front = _run_titles(points), set(_find_front(latency, points))
  header = ["", "policy", "mode", "history", "its tokens", "p50, ms", "p95, ms", "R@1", "on the Pareto front"]
  rows = []
  for place, point in enumerate(points):
    times = [format_number(point[name], ",.2f") for name in ("p50_ms", "p95_ms")]
    what = [_policy_title(point), _mode_title(point), _compressor(point), format_number(point.get("history_tokens"), ",.1f")]
    rows.append([place + 1, *what, *times, _quality(point), "yes" if place in front else "" if _is_trained(point) else _UNTRAINED])
  if len(runs) > 1:
    header.insert(1, "run")
    for row, point in zip(rows, points, strict=True):
      row.insert(1, escape_markdown(runs[point["run"]]))
  run = [""] * (len(runs) > 1)
  rows.insert(0, ["", *run, "upstream order", "", "", "", "0", "0", _quality(latency["upstream"]), "yes"])
  head = f"Device: {latency['machine']['device']}."
  note = (
    "Requests were sent one after the other, the rankers taking turns; compressed histories were those of users who ask again. p50, p95: "
    "the median request and the one in twenty. its tokens: mean of the history's. R@1: with its 95 % interval, over all test slates. On "
    "the Pareto front: none is faster and at least as good; the upstream order comes at no time of its own."
  )
  return f"{head}\n\n{markdown_table(header, rows)}\n\n{note}"


def _quality(point: Mapping[str, Any]) -> str:
  """R@1 with its interval."""
  between = ONE_USER if point["ci95"] is None else "[" + ", ".join(map(format_number, point["ci95"])) + "]"
  return f"{format_number(point['recall@1'])} {between}"
