"""Loss curves and curves of a sweep: a line for each kind of token or variant, nothing where nothing was logged."""

import numpy as np

from gr2_jax.reports.plots import (
  BETTER,
  DISTILLATION_PANELS,
  SERIES,
  UNDECIDED,
  WORSE,
  plot_compressed,
  plot_differences,
  plot_fronts,
  plot_losses,
  plot_rankers,
  plot_rl,
  plot_sweep,
)


def test_losses_have_a_panel_a_stage_and_a_line_a_kind_of_token():
  midtrain = [{"step": s, "loss": 3.0, "nll_token": 3.0 / s} for s in (1, 2, 3)]
  sft = [{"step": s, "nll_answer": 2.0, "nll_reasoning": None if s == 2 else 1.0} for s in (1, 2, 3)]
  figure = plot_losses({"mid-training": midtrain, "nothing": [], "SFT": sft})
  first, second = figure.axes
  assert (first.get_title("left"), second.get_title("left")) == ("mid-training", "SFT")
  raw, smooth = first.lines
  # Three points are too few to smooth: both lines are 3/1, 3/2, 3/3 at steps 1, 2, 3.
  assert raw.get_xydata().tolist() == smooth.get_xydata().tolist() == [[1, 3.0], [2, 1.5], [3, 1.0]]
  assert [text.get_text() for text in second.get_legend().get_texts()] == ["answer", "reasoning"]
  assert second.lines[2].get_xydata().tolist() == [[1, 1.0], [3, 1.0]]


def test_no_losses_no_figure():
  assert plot_losses({"SFT": [{"step": 1, "loss": 1.0}]}) is None


def test_a_sweep_draws_the_mean_of_the_seeds_and_pairs_colours():
  def lines(*rates):
    return [{"step": step, "identity_rate": rate, "near_identity_rate": rate} for step, rate in enumerate(rates, 1)]

  figure = plot_sweep({f"v_{i}": [lines(0.1, 0.2), lines(0.3, None)] for i in range(6)} | {"never_run": [[], []]})
  copies, _ = figure.axes  # nobody logged R@1
  # Step 1: the mean of 0.1 and 0.3; step 2: one seed logged nothing.
  assert copies.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.2]]
  assert len(copies.lines) == 6
  first, sixth = copies.lines[0], copies.lines[5]
  assert first.get_color() == sixth.get_color() and first.get_linestyle() != sixth.get_linestyle()
  assert sorted(text.get_text() for text in copies.texts) == ["v 0", "v 1", "v 2", "v 3", "v 4", "v 5"]
  assert plot_sweep({"never_run": [[]]}) is None and plot_sweep({"v": [lines(0.1)]}, DISTILLATION_PANELS) is None
  (distance,) = plot_sweep({"v": [[{"step": 1, "reverse_kl": 0.5}]]}, DISTILLATION_PANELS).axes
  assert distance.get_title() == "distance to the teacher" and distance.lines[0].get_xydata().tolist() == [[1, 0.5]]


def test_compressors_are_lines_over_the_tokens_that_they_keep():
  def compressed(kept, delta):
    pair = {"delta": delta, "delta_ci95": [delta - 0.1, delta + 0.1]}
    return {
      "paired": {"policy_compressed_soft_tokens_vs_policy": {"recall@3": pair, "ndcg@3": pair}},
      "cost": {"policy": {"prompt_tokens": 200}, "policy_compressed_soft_tokens": {"prompt_tokens": 2 * kept}},
    }

  figure = plot_compressed({"budget_24": compressed(40, -0.1), "budget_12": compressed(20, -0.2), "none": {}})
  left, right = figure.axes
  assert left.lines[0].get_label() == right.lines[0].get_label() == "soft tokens"
  assert left.lines[0].get_xydata().tolist() == [[20, -0.2], [40, -0.1]]
  assert plot_compressed({"none": {}}) is None


def test_differences_stand_under_their_headings_and_are_grey_where_the_interval_holds_nothing():
  def pair(low, high):
    return {name: {"delta": (low + high) / 2, "delta_ci95": [low, high]} for name in ("recall@1", "ndcg@3")}

  figure = plot_differences({"first": {"a – b": pair(0.1, 0.3)}, "second": {"c – d": pair(-0.1, 0.1), "e – f": pair(-0.3, -0.1)}})
  left, right = figure.axes
  assert [label.get_text() for label in left.get_yticklabels()] == ["first", "a – b", "second", "c – d", "e – f"]
  intervals = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
  assert [(list(line.get_xdata()), line.get_ydata()[0]) for line in intervals] == [([0.1, 0.3], 1), ([-0.1, 0.1], 3), ([-0.3, -0.1], 4)]
  assert [line.get_color() == UNDECIDED for line in intervals] == [False, True, False]
  assert plot_differences({}) is None and len(right.lines) == len(left.lines)


def test_lines_that_lie_on_one_another_can_be_told_apart():
  lines = [[{"step": step, "identity_rate": 0.0, "near_identity_rate": 0.5} for step in range(1, 101)]]
  copies = plot_sweep({f"v_{i}": lines for i in range(6)}).axes[0]
  widths = [line.get_linewidth() for line in copies.lines]
  assert widths == sorted(set(widths), reverse=True) and widths[-1] >= 1
  marked = [place for line in copies.lines for place in line.get_markevery()]
  assert len(marked) == len(set(marked)) >= 24
  heights = sorted(text.xyann[1] for text in copies.texts)
  assert len(heights) == 6 and min(np.diff(heights)) > 0.06
  assert copies.get_ylim()[0] < 0  # and a line at 0 lies above the axis


def test_colours_of_series_are_not_those_of_verdicts():
  assert not set(SERIES) & {BETTER, WORSE, UNDECIDED} and len(set(SERIES)) == len(SERIES)
  results = {"n": 1234, "orders": {name: {"recall@1": 0.2, "ndcg@3": 0.3} for name in ("upstream", "better", "worse", "alone")}}
  intervals = {"better": [0.1, 0.3], "worse": [-0.3, -0.1], "alone": None}
  results["paired"] = {
    f"{name}_vs_upstream": {m: {"delta": -0.2 if name == "worse" else 0.2, "delta_ci95": ends} for m in ("recall@1", "ndcg@3")}
    for name, ends in intervals.items()
  }
  figure = plot_rankers(results)
  points = [line.get_color() for line in figure.axes[0].lines if line.get_marker() in ("D", "o")]
  assert points == [BETTER, WORSE, UNDECIDED]
  assert "n = 1,234" in figure.axes[0].get_title()
  assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["better", "worse"]


def test_legends_of_curves_stand_outside_their_panels():
  lines = [{"step": s, "reward": 0.1 * s, "rank_reward": 0.2 * s, "valid_rate": 1.0, "kept_fraction": 0.5} for s in range(1, 30)]
  figure = plot_rl(lines)
  figure.canvas.draw()
  legends = [ax for ax in figure.axes if ax.get_legend() is not None]
  assert len(legends) == 2
  for ax in legends:
    legend, panel = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert legend.y0 >= panel.y1
    assert legend.y1 <= figure.bbox.y1 and legend.x1 <= figure.bbox.x1
  assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_fronts_have_a_panel_each_and_a_line_a_series():
  def points(*of):
    return [{"order": "v/policy", "true_ndcg@3": x, "brands@3": y} for x, y in of]

  front = {"axes": ["true_ndcg@3", "brands@3"], "series": {"RL": points((0.7, 0.9), (0.6, 1.0)), "control": points((0.72, 0.8))}}
  first, second = plot_fronts({"variety": front, "again": front}).axes
  assert [line.get_xydata().tolist() for line in first.lines] == [[[0.7, 0.9], [0.6, 1.0]], [[0.72, 0.8]]]
  assert first.get_xlabel() == "true N@3" and "brands" in first.get_ylabel() and second.get_title("left") == "again"
  assert [text.get_text() for text in first.get_legend().get_texts()] == ["RL", "control"]
  assert plot_fronts({}) is None
