"""Loss curves: a panel a stage, a line for each kind of token, nothing where nothing was logged."""

from gr2_jax.evaluation.plots import plot_losses


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
