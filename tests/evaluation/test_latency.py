"""The Pareto front against its definition, and a plot and a table that show every point."""

import numpy as np

from gr2_jax.evaluation.latency import latency_table, pareto_front, plot_latency


def make_point(p50, recall, **fields):
  of = {"run": "runs/a", "preset": "tiny", "mode": "score", "presentations": 1, "p50_ms": p50, "p95_ms": 2 * p50}
  return of | {"recall@1": recall, "ci95": [recall - 0.1, recall + 0.1]} | fields


def test_the_front_is_what_no_point_beats():
  random = np.random.default_rng(0)
  for _ in range(50):
    values = list(zip(random.integers(6, size=8).tolist(), random.integers(5, size=8).tolist(), strict=True))
    front = pareto_front([make_point(*pair) for pair in values])
    best = {a for a in values if not any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in values)}
    assert [values[place] for place in front] == sorted(best)


def test_every_point_is_drawn_and_told():
  points = [make_point(2.0, 0.4), make_point(9.0, 0.3, mode="reason", presentations=3), make_point(5.0, 0.5, run="runs/b", preset="small")]
  latency = {"machine": {"device": "cpu"}, "upstream": {"recall@1": 0.2}, "points": points}
  figure = plot_latency(latency)
  labels = [text.get_text() for text in figure.legends[0].get_texts()]
  titles = ["score, tiny (a)", "reason, 3 presentations, tiny (a)", "score, small (b)"]
  assert set(labels) == {*titles, "Pareto front", "upstream order"}
  (front,) = [line for line in figure.axes[0].lines if line.get_label() == "Pareto front"]
  assert front.get_xydata().tolist() == [[2.0, 0.4], [5.0, 0.5]]
  table = latency_table(latency)
  assert all(title in table for title in titles) and table.count("| yes |") == 2
