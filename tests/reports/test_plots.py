"""Loss curves and curves of a sweep: a line for each kind of token or variant, nothing where nothing was logged."""

from gr2_jax.reports.plots import GREY, plot_differences, plot_losses, plot_sweep


def test_losses_have_a_panel_a_stage_and_a_line_a_kind_of_token():
  midtrain = [{"step": s, "loss": 3.0, "nll_token": 3.0 / s} for s in (1, 2, 3)]
  sft = [{"step": s, "nll_answer": 2.0, "nll_reasoning": None if s == 2 else 1.0} for s in (1, 2, 3)]
  figure = plot_losses({"mid-training": midtrain, "nothing": [], "SFT": sft})
  first, second = figure.axes
  assert (first.get_title(), second.get_title()) == ("mid-training", "SFT")
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

  figure = plot_sweep({f"v_{i}": [lines(0.1, 0.2), lines(0.3, None)] for i in range(5)} | {"never_run": [[], []]})
  copies, _, accuracy = figure.axes
  # Step 1: the mean of 0.1 and 0.3; step 2: one seed logged nothing.
  assert copies.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.2]]
  assert len(copies.lines) == 5 and accuracy.lines[0].get_xydata().size == 0
  first, fifth = copies.lines[0], copies.lines[4]
  assert first.get_color() == fifth.get_color() and first.get_linestyle() != fifth.get_linestyle()
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["v 0", "v 1", "v 2", "v 3", "v 4"]
  assert plot_sweep({"never_run": [[]]}) is None


def test_differences_stand_under_their_headings_and_are_grey_where_the_interval_holds_nothing():
  def pair(low, high):
    return {name: {"delta": (low + high) / 2, "delta_ci95": [low, high]} for name in ("recall@1", "ndcg@3")}

  figure = plot_differences({"first": {"a – b": pair(0.1, 0.3)}, "second": {"c – d": pair(-0.1, 0.1), "e – f": pair(-0.3, -0.1)}})
  left, right = figure.axes
  assert [label.get_text() for label in left.get_yticklabels()] == ["first", "a – b", "second", "c – d", "e – f"]
  intervals = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
  assert [(list(line.get_xdata()), line.get_ydata()[0]) for line in intervals] == [([0.1, 0.3], 1), ([-0.1, 0.1], 3), ([-0.3, -0.1], 4)]
  assert [line.get_color() == GREY for line in intervals] == [False, True, False]
  assert plot_differences({}) is None and len(right.lines) == len(left.lines)
