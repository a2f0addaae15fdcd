"""The Pareto front against its definition, and a plot and a table that show every point."""

import numpy as np

from gr2_jax.reports.latency import latency_table, pareto_front, plot_latency
from gr2_jax.reports.tables import ONE_USER_NOTE


def make_point(p50, recall, **fields):
  of = {"run": "runs/a", "preset": "tiny", "stage": "rl", "title": "RL", "compressor": "full", "mode": "score", "presentations": 1}
  of |= {"history_tokens": 20.0, "p50_ms": p50, "p95_ms": 2 * p50}
  return of | {"recall@1": recall, "ci95": [recall - 0.1, recall + 0.1]} | fields


def test_the_front_is_what_no_point_beats():
  random = np.random.default_rng(0)
  for _ in range(50):
    values = list(zip(random.integers(6, size=8).tolist(), random.integers(5, size=8).tolist(), strict=True))
    front = pareto_front([make_point(*pair) for pair in values])
    best = {a for a in values if not any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in values)}
    assert [values[place] for place in front] == sorted(best)


def draw(points):
  latency = {"machine": {"device": "cpu"}, "upstream": {"recall@1": 0.2, "ci95": [0.1, 0.3]}, "points": points}
  figure = plot_latency(latency)
  return latency_table(latency).splitlines(), figure.axes[0], [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_point_is_drawn_and_told():
  points = [
    make_point(9.0, 0.3, mode="reason", presentations=3),
    make_point(2.0, 0.4, stage="prune", title="pruned", compressor="soft_tokens"),
    make_point(5.0, 0.5, mode="direct", stage="direct", title="direct"),
  ]
  table, ax, labels = draw(points)
  assert labels == ["1  pruned, score, soft_tokens", "2  direct, direct", "3  RL, reason ×3", "Pareto front", "upstream order"]
  assert [text.get_text() for text in ax.texts] == ["1", "2", "3"]
  (front,) = [line for line in ax.lines if line.get_label() == "Pareto front"]
  (upstream,) = [line for line in ax.lines if line.get_label() == "upstream order"]
  assert front.get_xydata().tolist() == [*upstream.get_xydata().tolist(), [2.0, 0.4], [5.0, 0.5]]
  # The upstream order takes no time: left of the scale, at a tick that says 0.
  assert upstream.get_xdata()[0] == ax.get_xticks()[0] < 2.0 and ax.get_xticklabels()[0].get_text() == "0"
  drawn = {line.get_label()[0]: line for line in ax.lines if line.get_label()[0].isdigit()}
  assert [drawn[number].get_xydata().tolist() for number in "123"] == [[[2.0, 0.4]], [[5.0, 0.5]], [[9.0, 0.3]]]
  assert len({line.get_color() for line in drawn.values()}) == len({line.get_marker() for line in drawn.values()}) == 3
  assert [drawn[number].get_markerfacecolor() == "white" for number in "123"] == [True, False, False]
  rows = [row for row in table if row[2:3].isdigit()]
  assert [row for row in table if row.startswith("|")][2] == "|  | upstream order |  |  |  | 0 | 0 | 0.2000 [0.1000, 0.3000] | yes |"
  assert [row.split(" | ")[1:4] for row in rows] == [
    ["pruned", "score", "soft_tokens"],
    ["direct", "direct", "full"],
    ["RL", "reason ×3", "full"],
  ]
  assert [row.endswith("| yes |") for row in rows] == [True, True, False]


def test_a_mode_that_is_worse_than_the_upstream_order_is_not_on_the_front():
  table, ax, _ = draw([make_point(1.0, 0.15), make_point(2.0, 0.25)])
  (front,) = [line for line in ax.lines if line.get_label() == "Pareto front"]
  assert front.get_ydata().tolist() == [0.2, 0.25]
  assert [row.endswith("| yes |") for row in table if row[2:3].isdigit()] == [False, True]


def test_one_slate_has_no_interval():
  table, _, _ = draw([make_point(1.0, 1.0) | {"ci95": None}])
  assert "1.0000 [one user]" in "".join(table) and ONE_USER_NOTE in table


def test_what_a_policy_was_not_trained_for_stands_outside_the_front():
  points = [make_point(2.0, 0.9, trained=False), make_point(3.0, 0.4, mode="reason", trained=True)]
  table, ax, labels = draw(points)
  assert labels[0] == "1  RL, score, not trained for it" and "2  RL, reason" in labels
  (front,) = [line for line in ax.lines if line.get_label() == "Pareto front"]
  assert front.get_ydata().tolist() == [0.2, 0.4]
  told = [row.split(" | ")[-1] for row in table if "RL" in row]
  assert told == ["not trained for it |", "yes |"]


def test_runs_have_colours_and_are_told_apart():
  points = [make_point(2.0, 0.4), make_point(3.0, 0.5, run="runs/b", preset="small"), make_point(4.0, 0.6, run="runs/c")]
  table, ax, labels = draw(points)
  assert labels[:3] == ["1  tiny (a), RL, score", "2  small, RL, score", "3  tiny (c), RL, score"]
  assert [row.split(" | ")[1] for row in table if row[2:3].isdigit()] == ["tiny (a)", "small", "tiny (c)"]
  assert len({line.get_color() for line in ax.lines if line.get_label()[0].isdigit()}) == 3


def test_numbers_do_not_hide_one_another():
  random = np.random.default_rng(0)
  for spread in (0.001, 0.3):
    points = [make_point(float(10 * np.exp(spread * random.normal())), 0.3 + 0.02 * random.random()) for _ in range(24)]
    _, ax, _ = draw(points)
    centres = np.array([ax.transData.transform(text.xy) * 72 / ax.figure.dpi + text.xyann for text in ax.texts])
    apart = np.linalg.norm((centres[:, None] - centres) / (1.3, 1.0), axis=2) + 100 * np.eye(len(points))
    assert apart.min() >= 6


def test_points_of_a_version_without_compressors_and_titles_are_drawn():
  point = make_point(2.0, 0.4)
  del point["compressor"], point["history_tokens"], point["title"]
  table, _, labels = draw([point])
  assert labels[0] == "1  rl, score" and any("| rl | score | full | – |" in row for row in table)
