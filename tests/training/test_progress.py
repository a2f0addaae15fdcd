"""Plain lines in a log, bars on a terminal."""

import io

from rich.console import Console

from gr2_jax.training.progress import Progress, format_seconds


def test_plain_lines_when_there_is_no_terminal():
  out = io.StringIO()
  progress = Progress(Console(file=out, width=60), every=0)
  with progress.task("sft", 4) as task:
    task.update(2, {"loss": 1.23456})
    task.advance()
  lines = out.getvalue().splitlines()
  assert lines[0].startswith("sft: 2/4 steps (50 %), ")
  assert lines[0].endswith("left  loss 1.235")
  assert lines[-1].startswith("sft: 3/4 steps (75 %)")


def test_a_headline_chooses_what_is_shown_and_in_which_order():
  out = io.StringIO()
  with Progress(Console(file=out, width=60), every=0).task("rl", 2, headline=("reward", "entropy", "later")) as task:
    task.update(1, {"entropy": 0.5, "grad_norm": 3.0, "reward": 0.25})
  assert out.getvalue().splitlines()[0].endswith("left  reward 0.25  entropy 0.5")


def test_lines_are_rare_in_a_log_but_the_last_is_shown():
  out = io.StringIO()
  with Progress(Console(file=out), every=1000.0).task("rl", 100) as task:
    for step in range(1, 101):
      task.update(step)
  assert out.getvalue().splitlines()[0].startswith("rl: 100/100")
  assert len(out.getvalue().splitlines()) == 1


def test_work_of_an_earlier_session_is_not_in_the_rate():
  with Progress(Console(file=io.StringIO())).task("rl", 10) as task:
    task.start_from(5)
    assert task.rate() == 0.0
    assert task.remaining() == "-:--"
    task.advance()
    assert task.rate() > 0


def test_a_terminal_gets_a_bar_and_tasks_nest():
  out = io.StringIO()
  progress = Progress(Console(file=out, force_terminal=True, width=160))
  with progress.task("rl", 10) as outer:
    outer.update(5, {"reward": 0.5})
    with progress.task("evaluate", 3, unit="slates") as inner:
      inner.update(3)
    outer.update(10)
  text = out.getvalue()
  assert "━" in text
  assert "10/10" in text
  assert "3/3" in text
  assert "reward 0.5" in text
  with progress.task("again", 1) as task:
    task.update(1)


def test_format_seconds():
  assert [format_seconds(s) for s in (0, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]
