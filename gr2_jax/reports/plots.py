"""The card's pictures, each a matplotlib Figure; colours of Okabe and Ito, which colour-blind readers can tell apart.

A colour means one thing in all of them: blue is better, orange worse, grey not told apart; series have the other colours.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gr2_jax.data.schema import SPLITS
from gr2_jax.evaluation.results import COMPRESSED
from gr2_jax.files import replacing
from gr2_jax.reports.names import TABLE_METRICS, metric_title, ranker_title, sort_rankers
from gr2_jax.reports.tables import is_decided

BETTER, WORSE, UNDECIDED = "#0072B2", "#D55E00", "#666666"
SERIES = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v")
_STYLES = ("-", "--", ":")

# Panels of the RL figure: title, unit of the y axis, and the logged metrics drawn in it.
_RL_PANELS = (
  ("reward", "reward", {"reward": "after the condition", "rank_reward": "ranking reward alone"}),
  ("R@1 of the sampled answers", "R@1", {"recall@1": "R@1"}),
  ("copying", "share of valid answers", {"identity_rate": "copies", "near_identity_rate": "copies up to one swap"}),
  ("what can be learnt from", "share", {"valid_rate": "valid answers", "kept_fraction": "groups kept"}),
  ("KL to the teacher", "nats per token", {"reverse_kl": "reverse KL"}),
  ("entropy", "nats per token", {"entropy": "entropy"}),
  ("answer length", "tokens", {"completion_length": "tokens"}),
)


def _axes(figure: Figure, rows: int = 1, columns: int = 1) -> np.ndarray:
  axes = figure.subplots(rows, columns, squeeze=False)
  for ax in axes.flat:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
  return axes


def _count_from_one(ax: Axes, size: int) -> None:
  step = max(1, -(-size // 15))
  ax.set_xticks(range(1, size + 1, step))


def _draw_difference(ax: Axes, place: int, of: Mapping[str, Any]) -> None:
  """A paired difference with its interval, where it has one; grey where that holds 0."""
  decided = is_decided(of)
  colour = (BETTER if of["delta"] > 0 else WORSE) if decided else UNDECIDED
  if of["delta_ci95"] is not None:
    ax.plot(of["delta_ci95"], [place, place], color=colour, linewidth=2)
  ax.plot(of["delta"], place, marker="D" if decided else "o", color=colour)


def _explain_differences(figure: Figure) -> None:
  """What the colours of `_draw_difference` mean, under the panels."""
  meanings = {"better": (BETTER, "D"), "worse": (WORSE, "D"), "the interval holds 0, or there is none": (UNDECIDED, "o")}
  handles = [Line2D([], [], color=colour, marker=marker, linewidth=2, label=label) for label, (colour, marker) in meanings.items()]
  figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _legend_above(ax: Axes, title: str, columns: int = 2) -> None:
  """The panel's title, and between it and the panel its legend, which hides no curve there."""
  labelled = len(ax.get_legend_handles_labels()[0])
  ax.set_title(title, fontsize=10, loc="left", pad=8 + (16 * -(-labelled // columns) if labelled > 1 else 0))
  if labelled > 1:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2)


def plot_differences(
  groups: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str] = ("recall@1", "ndcg@3")
) -> Figure | None:
  """Paired differences with their intervals, `groups`: heading -> label -> metric -> paired difference; the labels stand under headings.

  Labels say of what a positive difference is the gain, as in `ours – theirs (n = 300)`.
  """
  rows = [row for heading, of in groups.items() for row in ((heading, None), *of.items())]
  if not rows:
    return None
  figure = Figure(figsize=(4 * len(metrics) + 5, 1.4 + 0.27 * len(rows)), layout="constrained")
  axes = _axes(figure, 1, len(metrics))[0]
  for ax, metric in zip(axes, metrics, strict=True):
    for place, (_, paired) in enumerate(rows):
      if paired is not None and metric in paired:
        _draw_difference(ax, place, paired[metric])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows] if ax is axes[0] else [""] * len(rows), fontsize=8)
    ax.set_xlabel(f"{metric_title(metric)}, difference with its 95 % interval")
  for label, (_, paired) in zip(axes[0].get_yticklabels(), rows, strict=True):
    label.set_fontweight("bold" if paired is None else "normal")
  _explain_differences(figure)
  return figure


def plot_fronts(fronts: Mapping[str, Mapping[str, Any]]) -> Figure | None:
  """A panel for each front of `reports.comparisons.compute_fronts`: rankers at the means of two metrics, those of a series in a line."""
  if not fronts:
    return None
  figure = Figure(figsize=(4.6 * len(fronts), 4.2), layout="constrained")
  for ax, (title, front) in zip(_axes(figure, 1, len(fronts))[0], fronts.items(), strict=True):
    for place, (label, points) in enumerate(front["series"].items()):
      x, y = ([of[metric] for of in points] for metric in front["axes"])
      ax.plot(x, y, marker=_MARKERS[place % len(_MARKERS)], color=SERIES[place % len(SERIES)], label=label)
    for axis, metric in zip((ax.xaxis, ax.yaxis), front["axes"], strict=True):
      axis.set_label_text(metric_title(metric))
    _legend_above(ax, title)
  return figure


def plot_compressed(variants: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = ("recall@3", "ndcg@3")) -> Figure | None:
  """What shorter histories cost, by the share of the prompt's tokens that they keep; `variants`: name -> its `compressed` of sweep.json."""
  points: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
  for of in variants.values():
    for pair, paired in of.get("paired", {}).items():
      name, base = pair.split("_vs_")
      kept = of["cost"][name]["prompt_tokens"] / of["cost"][base]["prompt_tokens"]
      points.setdefault(name.removeprefix(COMPRESSED).replace("_", " "), []).append((100 * kept, paired))
  if not points:
    return None
  figure = Figure(figsize=(4.6 * len(metrics), 3.8), layout="constrained")
  for ax, metric in zip(_axes(figure, 1, len(metrics))[0], metrics, strict=True):
    for place, (name, measured) in enumerate(points.items()):
      style = {"color": SERIES[place % len(SERIES)], "marker": _MARKERS[place % len(_MARKERS)]}
      measured = sorted(measured, key=lambda point: point[0])
      kept = [share for share, _ in measured]
      differences = [paired[metric] for _, paired in measured]
      ax.plot(kept, [difference["delta"] for difference in differences], label=name, **style)
      for x, difference in zip(kept, differences, strict=True):
        if difference["delta_ci95"] is not None:
          ax.plot([x, x], difference["delta_ci95"], color=style["color"], linewidth=1)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlabel("tokens of the prompt that are kept, %")
    ax.set_ylabel(f"{TABLE_METRICS[metric]}, difference to full histories")
    _legend_above(ax, TABLE_METRICS[metric])
  return figure


def plot_rankers(results: Mapping[str, Any], metrics: Sequence[str] = ("recall@1", "ndcg@3")) -> Figure | None:
  """Difference of each ranker to the upstream order with its paired 95 % interval; the oracle, far outside, and n are told in the title."""
  titles = results.get("titles", {})
  sorted_names = sort_rankers(results["orders"], titles)
  names = [name for name in sorted_names if name not in ("upstream", "oracle") and f"{name}_vs_upstream" in results["paired"]]
  if not names:
    return None
  figure = Figure(figsize=(4.4 * len(metrics) + 1, 1.8 + 0.42 * len(names)), layout="constrained")
  for ax, metric in zip(_axes(figure, 1, len(metrics))[0], metrics, strict=True):
    base = results["orders"]["upstream"][metric]
    for place, name in enumerate(names):
      _draw_difference(ax, place, results["paired"][f"{name}_vs_upstream"][metric])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(names)), [ranker_title(name, titles) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{TABLE_METRICS[metric]} minus upstream's, 95 % interval")
    oracle = results["orders"].get("oracle", {}).get(metric)
    told = [f"upstream {base:.3f}", *([] if oracle is None else [f"oracle {oracle:.3f}"])]
    if metric == metrics[0]:  # the axes of the others are narrow beside their labels
      told.append(f"n = {results['n']:,}")
    ax.set_title(f"{TABLE_METRICS[metric]}: {', '.join(told)}", fontsize=10)
  _explain_differences(figure)
  return figure


def plot_rank_histogram(histogram: Mapping[str, Sequence[int]]) -> Figure:
  """Where the upstream order put the target, in training and in test slates: the two should look alike."""
  figure = Figure(figsize=(6.4, 3.4), layout="constrained")
  ax = _axes(figure)[0, 0]
  splits = [s for s in SPLITS if s in histogram]
  width = 0.8 / len(splits)
  for place, (split, colour) in enumerate(zip(splits, SERIES, strict=False)):
    counts = np.asarray(histogram[split], float)
    ranks = np.arange(1, len(counts) + 1) + (place - (len(splits) - 1) / 2) * width
    hatch = (None, "..", "//")[place]
    ax.bar(
      ranks,
      counts / max(counts.sum(), 1),
      width,
      color=colour,
      hatch=hatch,
      edgecolor="white",
      label=f"{split} (n = {int(counts.sum()):,})",
    )
  ax.set_xlabel("target's rank in the upstream order")
  ax.set_ylabel("share of slates")
  _count_from_one(ax, max(len(histogram[s]) for s in splits))
  _legend_above(ax, "", columns=len(splits))
  return figure


def plot_top1_share(results: Mapping[str, Any], name: str) -> Figure | None:
  """At which slot a ranker's first choice was shown, by presentation, beside where the targets stand in the upstream order."""
  of = results["diagnostics"].get(name, {})
  first, *others = results["presentations"].get(name, {"upstream": None})
  shares = {first: of.get("top1_share_by_slot")} | {p: of[p]["top1_share_by_slot"] for p in others if p in of}
  shares = {p: s for p, s in shares.items() if s is not None}
  if not shares:
    return None
  figure = Figure(figsize=(6.4, 3.4), layout="constrained")
  ax = _axes(figure)[0, 0]
  targets = np.asarray(results["upstream_rank_histogram"]["test"], float)
  slots, title = np.arange(1, len(targets) + 1), ranker_title(name, results.get("titles", {}))
  ax.bar(slots, targets / max(targets.sum(), 1), color="#dddddd", label="targets, upstream order")
  for place, (presentation, share) in enumerate(shares.items()):
    style = {"color": SERIES[place % len(SERIES)], "marker": _MARKERS[place % len(_MARKERS)]}
    ax.plot(slots, share, label=f"{title}, shown {presentation.replace('_', ' ')}", **style)
  ax.set_xlabel("slot at which the candidate was shown")
  ax.set_ylabel("share of first choices")
  ax.set_ylim(bottom=0)
  _count_from_one(ax, len(slots))
  _legend_above(ax, "")
  return figure


def _smooth(values: np.ndarray) -> np.ndarray:
  """Centred moving mean over a tenth of the run."""
  half = len(values) // 20
  return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def _draw_steps(ax: Axes, lines: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
  """Metrics `{name: label}` over the steps: as logged, and smoothed."""
  for place, (name, label) in enumerate(names.items()):
    points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None], float)
    colour = SERIES[place % len(SERIES)]
    ax.plot(points[:, 0], points[:, 1], color=colour, alpha=0.3, linewidth=0.8)
    style = _STYLES[place % len(_STYLES)]
    ax.plot(
      points[:, 0], _smooth(points[:, 1]), color=colour, linewidth=1.8 if place or len(names) == 1 else 2.6, linestyle=style, label=label
    )
  ax.set_xlabel("step")
  ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def plot_rl(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
  """Reward, R@1, copying, valid answers, entropy and length over the RL steps; None where nothing of it was logged."""
  logged = _logged(lines)
  panels = [(title, unit, names) for title, unit, names in _RL_PANELS if logged & names.keys()]
  if not panels:
    return None
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(4.0 * columns, 2.9 * rows), layout="constrained")
  axes = _axes(figure, rows, columns).flat
  for ax, (title, unit, names) in zip(axes, panels, strict=False):
    _draw_steps(ax, lines, {name: label for name, label in names.items() if name in logged})
    _legend_above(ax, title)
    ax.set_ylabel(unit)
    if unit.startswith("share"):
      top = 1.0 if title != "copying" else max(ax.get_ylim()[1], 0.1)
      ax.set_ylim(-0.03 * top, 1.03 * top)
  for ax in axes:
    ax.remove()
  return figure


# Panels of a sweep's figures: title, unit of the y axis, logged metric.
Panels = Sequence[tuple[str, str, str]]
COPYING_PANELS: Panels = (
  ("copies of the shown or upstream order", "share of valid answers", "identity_rate"),
  ("copies up to one swap", "share of valid answers", "near_identity_rate"),
  ("R@1 of the sampled answers", "R@1", "recall@1"),
)


# The same for what teaches a policy by another one's answers: on-policy distillation, and what pruning is recovered by.
DISTILLATION_PANELS: Panels = (
  ("distance to the teacher", "reverse KL, nats per token", "reverse_kl"),
  ("loss", "loss", "loss"),
)


class Panel(NamedTuple):
  """A panel of curves: `metric`, in `unit`, over the steps, of `runs`: name -> the metric lines of each seed."""

  title: str
  unit: str
  metric: str
  steps: str
  runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]


def plot_sweep(variants: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], panels: Panels = COPYING_PANELS) -> Figure | None:
  """Metrics over the steps of a training by variant, see `plot_curves`; `variants`: name -> the metric lines of each seed.

  A panel whose metric nobody logged is left out; None where that leaves none.
  """
  logged = {name for runs in variants.values() for lines in runs for name in _logged(lines)}
  return plot_curves([Panel(title, unit, metric, "step", variants) for title, unit, metric in panels if metric in logged])


def plot_curves(panels: Sequence[Panel]) -> Figure | None:
  """Metrics over the steps by name, the mean of its seeds smoothed; None where nothing was logged.

  A name has one look in all panels. Colours come again with other dashes. Lines that lie on one another are told apart by their widths, the
  first the widest, by their markers, which take turns along the steps, and by their names, which stand where they end.
  """
  names = list(dict.fromkeys(name for panel in panels for name, runs in panel.runs.items() if any(runs)))
  if not names:
    return None
  columns = min(len(panels), 3)
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(5.4 * columns, rows * max(3.9, 0.8 + 0.25 * len(names))), layout="constrained")
  axes = _axes(figure, rows, columns).flat
  for ax, panel in zip(axes, panels, strict=False):
    for place, name in enumerate(names):
      steps, means = _mean_over_runs(panel.runs.get(name, ()), panel.metric)
      style: dict[str, Any] = {"color": SERIES[place % len(SERIES)], "linestyle": _STYLES[place // len(SERIES) % len(_STYLES)]}
      style |= {"linewidth": 1.2 + 2.8 * (1 - (place + 1) / len(names)), "marker": _MARKERS[place % len(_MARKERS)], "markersize": 5}
      ax.plot(steps, _smooth(means), label=name.replace("_", " "), markevery=_markers_of(place, len(names), len(steps)), **style)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel(panel.steps)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set_ylabel(panel.unit)
    if panel.unit.startswith("share"):
      top = max(ax.get_ylim()[1], 0.05)
      ax.set_ylim(-0.04 * top, top)  # a line at 0 stays off the axis
    _name_lines(ax)
  for ax in axes:
    ax.remove()
  return figure


def _name_lines(ax: Axes) -> None:
  """Writes each line's name right of the panel, as near as others leave it to the line's end, to which it is tied."""
  low, high = ax.get_ylim()
  last = [(line, np.asarray(line.get_xydata())[-1]) for line in ax.lines if np.size(line.get_xydata())]
  last.sort(key=lambda end: float(end[1][1]))
  heights = np.array([(point[1] - low) / (high - low) for _, point in last])
  for place in range(1, len(heights)):
    heights[place] = max(heights[place], heights[place - 1] + 0.07)
  heights = np.minimum(heights, 1)
  for place in range(len(heights) - 2, -1, -1):
    heights[place] = min(heights[place], heights[place + 1] - 0.07)
  for height, (line, point) in zip(heights, last, strict=True):
    ax.annotate(
      str(line.get_label()),
      (point[0], point[1]),
      (1.06, height),
      textcoords="axes fraction",
      va="center",
      fontsize=8,
      color=line.get_color(),
      arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
      annotation_clip=False,
    )


def _markers_of(place: int, count: int, steps: int) -> list[int]:
  """At which of the `steps` a line out of `count` has its markers: about six of them, none where another line has one."""
  apart = max(steps // (6 * count), 1)
  return list(range(place * apart, steps, count * apart)) or [place % max(steps, 1)] * bool(steps)


def _mean_over_runs(runs: Sequence[Sequence[Mapping[str, Any]]], metric: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps, and the mean of the metric over the runs that logged it there."""
  values: dict[int, list[float]] = {}
  for lines in runs:
    for line in lines:
      if line.get(metric) is not None:
        values.setdefault(line["step"], []).append(line[metric])
  steps = sorted(values)
  return np.array(steps), np.array([np.mean(values[step]) for step in steps])


def plot_losses(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
  """Negative log-likelihood of each kind of token over the steps, a panel a stage (title -> its metric lines); None without any."""
  found = {title: sorted(n for n in _logged(lines) if n.startswith("nll_")) for title, lines in stages.items()}
  found = {title: names for title, names in found.items() if names}
  if not found:
    return None
  figure = Figure(figsize=(3.7 * len(found) + 0.5, 3.2), layout="constrained")
  for ax, (title, names) in zip(_axes(figure, 1, len(found))[0], found.items(), strict=True):
    _draw_steps(ax, stages[title], {name: name.removeprefix("nll_") for name in names})
    _legend_above(ax, title)
    ax.set_ylabel("loss, nats per token")
  return figure


def _logged(lines: Sequence[Mapping[str, Any]]) -> set[str]:
  """Names of the metrics that have a value somewhere."""
  return {name for line in lines for name, value in line.items() if value is not None}


def plot_sid_usage(report: Mapping[str, Any]) -> Figure:
  """Share of each level's codes that are used, and their perplexity over the codebook, as trained and as exported."""
  figure = Figure(figsize=(6.4, 3.2), layout="constrained")
  for ax, (key, label) in zip(_axes(figure, 1, 2)[0], (("usage", "codes used"), ("perplexity", "perplexity")), strict=True):
    for place, (when, title, colour) in enumerate((("before", "as trained", SERIES[0]), ("after", "as exported", SERIES[1]))):
      scale = report["codebook_size"] if key == "perplexity" else 1
      shares = [level[key] / scale for level in report[when]["levels"]]
      ax.bar(
        np.arange(1, len(shares) + 1) + (place - 0.5) * 0.4,
        shares,
        0.4,
        color=colour,
        hatch=(None, "//")[place],
        edgecolor="white",
        label=title,
      )
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("level of the semantic ID")
    ax.set_ylabel(f"{label} / codebook size {report['codebook_size']}")
    _count_from_one(ax, len(shares))
  figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
  return figure


def save_figure(figure: Figure, path: pathlib.Path) -> None:
  """Writes a PNG that does not depend on the time it was made at."""
  with replacing(path) as partial:  # the old one may be shared with another run
    figure.savefig(partial, dpi=120, metadata={"Software": None})
