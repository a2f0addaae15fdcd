"""The card's pictures, each a matplotlib Figure; colours of Okabe and Ito, which colour-blind readers can tell apart."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gr2_jax.data.schema import SPLITS
from gr2_jax.reports.names import ranker_title, sort_rankers

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
_MARKERS = ("o", "s", "^", "D")

# Panels of the RL figure: title, unit of the y axis, and the logged metrics drawn in it.
_RL_PANELS = (
  ("reward", "reward", {"reward": "after the condition", "rank_reward": "ranking reward alone"}),
  ("copying", "share of valid answers", {"identity_rate": "copies", "near_identity_rate": "copies up to one swap"}),
  ("valid answers", "share of answers", {"valid_rate": "valid"}),
  ("KL to the teacher", "nats per token", {"reverse_kl": "reverse KL"}),
  ("entropy", "nats per token", {"entropy": "entropy"}),
  ("answer length", "tokens", {"completion_length": "tokens"}),
  ("groups kept", "share of groups", {"kept_fraction": "kept"}),
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
  """A paired difference with its interval; grey where that holds 0."""
  (low, high), delta = of["delta_ci95"], of["delta"]
  colour = GREY if low <= 0 <= high else BLUE if delta > 0 else ORANGE
  ax.plot([low, high], [place, place], color=colour, linewidth=2)
  ax.plot(delta, place, marker="o" if low <= 0 <= high else "D", color=colour)


def plot_differences(
  groups: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str] = ("recall@1", "ndcg@3")
) -> Figure | None:
  """Paired differences with their intervals, `groups`: heading -> label -> metric -> paired difference; the labels stand under headings."""
  rows = [row for heading, of in groups.items() for row in ((heading, None), *of.items())]
  if not rows:
    return None
  figure = Figure(figsize=(4 * len(metrics) + 5, 1 + 0.27 * len(rows)), layout="constrained")
  axes = _axes(figure, 1, len(metrics))[0]
  for ax, metric in zip(axes, metrics, strict=True):
    for place, (_, paired) in enumerate(rows):
      if paired is not None and metric in paired:
        _draw_difference(ax, place, paired[metric])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows] if ax is axes[0] else [""] * len(rows), fontsize=8)
    ax.set_xlabel(f"{metric}, difference with its 95 % interval")
  for label, (_, paired) in zip(axes[0].get_yticklabels(), rows, strict=True):
    label.set_fontweight("bold" if paired is None else "normal")
  return figure


def plot_rankers(results: Mapping[str, Any], metrics: Sequence[str] = ("recall@1", "ndcg@3")) -> Figure | None:
  """Difference of each ranker to the upstream order with its paired 95 % interval; the oracle, far outside, is told in the title."""
  titles = results.get("titles", {})
  sorted_names = sort_rankers(results["orders"], titles)
  names = [name for name in sorted_names if name not in ("upstream", "oracle") and f"{name}_vs_upstream" in results["paired"]]
  if not names:
    return None
  figure = Figure(figsize=(4.4 * len(metrics) + 1, 1.4 + 0.42 * len(names)), layout="constrained")
  for ax, metric in zip(_axes(figure, 1, len(metrics))[0], metrics, strict=True):
    base = results["orders"]["upstream"][metric]
    for place, name in enumerate(names):
      _draw_difference(ax, place, results["paired"][f"{name}_vs_upstream"][metric])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(names)), [ranker_title(name, titles) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{metric} minus upstream's, 95 % interval")
    oracle = results["orders"].get("oracle", {}).get(metric)
    ax.set_title(f"{metric}: upstream {base:.3f}" + ("" if oracle is None else f", oracle {oracle:.3f}"), fontsize=10)
  return figure


def plot_rank_histogram(histogram: Mapping[str, Sequence[int]]) -> Figure:
  """Where the upstream order put the target, in training and in test slates: the two should look alike."""
  figure = Figure(figsize=(6.4, 3.4), layout="constrained")
  ax = _axes(figure)[0, 0]
  splits = [s for s in SPLITS if s in histogram]
  width = 0.8 / len(splits)
  for place, (split, colour) in enumerate(zip(splits, (BLUE, GREEN, ORANGE), strict=False)):
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
  ax.legend(frameon=False)
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
    colour = (BLUE, ORANGE, GREEN, PURPLE)[place % 4]
    ax.plot(slots, share, marker=_MARKERS[place % 4], color=colour, label=f"{title}, shown {presentation.replace('_', ' ')}")
  ax.set_xlabel("slot at which the candidate was shown")
  ax.set_ylabel("share of first choices")
  ax.set_ylim(bottom=0)
  _count_from_one(ax, len(slots))
  ax.legend(frameon=False)
  return figure


def _smooth(values: np.ndarray) -> np.ndarray:
  """Centred moving mean over a twentieth of the run."""
  half = len(values) // 40
  return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def _draw_steps(ax: Axes, lines: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
  """Metrics `{name: label}` over the steps: as logged, and smoothed."""
  for place, (name, label) in enumerate(names.items()):
    points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None], float)
    colour = (BLUE, ORANGE)[place % 2]
    ax.plot(points[:, 0], points[:, 1], color=colour, alpha=0.25, linewidth=0.8)
    ax.plot(points[:, 0], _smooth(points[:, 1]), color=colour, linewidth=1.8, linestyle=("-", "--")[place % 2], label=label)
  ax.set_xlabel("step")


def plot_rl(lines: Sequence[Mapping[str, Any]]) -> Figure | None:
  """Reward, copying, valid rate, entropy, length and kept groups over the RL steps; None where nothing of it was logged."""
  logged = _logged(lines)
  panels = [(title, unit, names) for title, unit, names in _RL_PANELS if logged & names.keys()]
  if not panels:
    return None
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(3.7 * columns, 2.6 * rows), layout="constrained")
  axes = _axes(figure, rows, columns).flat
  for ax, (title, unit, names) in zip(axes, panels, strict=False):
    _draw_steps(ax, lines, {name: label for name, label in names.items() if name in logged})
    ax.set_title(title, fontsize=10)
    ax.set_ylabel(unit)
    if unit.startswith("share"):
      ax.set_ylim(-0.03, 1.03)
    if len(names) > 1:
      ax.legend(frameon=False, fontsize=8)
  for ax in axes:
    ax.remove()
  return figure


# Panels of a sweep's figure: title, unit of the y axis, logged metric.
_SWEEP_PANELS = (
  ("copies of the shown or upstream order", "share of valid answers", "identity_rate"),
  ("copies up to one swap", "share of valid answers", "near_identity_rate"),
  ("R@1 of the sampled answers", "R@1", "recall@1"),
)


def plot_sweep(variants: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure | None:
  """Copying and R@1 over the RL steps by variant, the mean of its seeds smoothed; None where nothing was logged.

  `variants`: name -> the metric lines of each seed. The first four have solid lines, the next four the same colours dashed, and so on.
  """
  variants = {name: runs for name, runs in variants.items() if any(runs)}
  if not variants:
    return None
  figure = Figure(figsize=(4.2 * len(_SWEEP_PANELS), 3.9), layout="constrained")
  axes = _axes(figure, 1, len(_SWEEP_PANELS))[0]
  for ax, (title, unit, metric) in zip(axes, _SWEEP_PANELS, strict=True):
    for place, (name, runs) in enumerate(variants.items()):
      steps, means = _mean_over_runs(runs, metric)
      style = {"color": (BLUE, ORANGE, GREEN, PURPLE)[place % 4], "linestyle": ("-", "--", ":")[place // 4 % 3]}
      ax.plot(steps, _smooth(means), linewidth=1.8, label=name.replace("_", " "), **style)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("RL step")
    ax.set_ylabel(unit)
    ax.set_ylim(bottom=0)
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(variants)), frameon=False)
  return figure


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
  figure = Figure(figsize=(3.7 * len(found) + 0.5, 2.8), layout="constrained")
  for ax, (title, names) in zip(_axes(figure, 1, len(found))[0], found.items(), strict=True):
    _draw_steps(ax, stages[title], {name: name.removeprefix("nll_") for name in names})
    ax.set_title(title, fontsize=10)
    ax.set_ylabel("loss, nats per token")
    if len(names) > 1:
      ax.legend(frameon=False, fontsize=8)
  return figure


def _logged(lines: Sequence[Mapping[str, Any]]) -> set[str]:
  """Names of the metrics that have a value somewhere."""
  return {name for line in lines for name, value in line.items() if value is not None}


def plot_sid_usage(report: Mapping[str, Any]) -> Figure:
  """Share of each level's codes that are used, and their perplexity over the codebook, as trained and as exported."""
  figure = Figure(figsize=(6.4, 3.2), layout="constrained")
  for ax, (key, label) in zip(_axes(figure, 1, 2)[0], (("usage", "codes used"), ("perplexity", "perplexity")), strict=True):
    for place, (when, title, colour) in enumerate((("before", "as trained", BLUE), ("after", "as exported", ORANGE))):
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
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120, metadata={"Software": None})
