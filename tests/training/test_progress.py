"""Plain lines in a log, bars on a terminal."""

import io

import pytest
from rich.console import Console

from gr2_jax.training import progress as progress_module
from gr2_jax.training.progress import Progress, format_seconds


class Clock:
  """Stands for `time`; moved by hand."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress_module, "time", clock)
  return clock


@pytest.fixture
def out():
  return io.StringIO()


def test_plain_lines_when_there_is_no_terminal(out, clock):
  progress = Progress(Console(file=out, width=60), every=0)
  with progress.task("sft", 4) as task:
    task.update(1, {"loss": 1.23456})
    clock.now += 2
    task.advance()
  assert out.getvalue().splitlines() == [
    "sft: 1/4 steps (25 %), -:-- left  loss 1.235",
    "sft: 2/4 steps (50 %), 0.5 steps/s, 0:04 left  loss 1.235",
  ]


def test_a_headline_chooses_what_is_shown_and_in_which_order(out):
  with Progress(Console(file=out, width=60), every=0).task("rl", 2, headline=("reward", "entropy", "later")) as task:
    task.update(1, {"entropy": 0.5, "grad_norm": 3.0, "reward": 0.25})
  assert out.getvalue().splitlines()[0].endswith("left  reward 0.25  entropy 0.5")


def test_lines_are_rare_in_a_log_but_the_last_is_shown(out):
  with Progress(Console(file=out), every=1000.0).task("rl", 100) as task:
    for step in range(1, 101):
      task.update(step)
  assert out.getvalue().splitlines()[0].startswith("rl: 100/100")
  assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("every", [0, 10.0])
def test_no_line_is_shown_twice(out, clock, every):
  with Progress(Console(file=out), every=every).task("rl", 3) as task:
    task.start_from(0)
    for step in (1, 2, 3):
      clock.now += 10
      task.update(step, {"reward": step / 4})
  lines = out.getvalue().splitlines()
  assert [line[:7] for line in lines] == ["rl: 0/3", "rl: 1/3", "rl: 2/3", "rl: 3/3"]
  assert lines[-1] == "rl: 3/3 steps (100 %), 0.1 steps/s  reward 0.75"


@pytest.mark.parametrize("done", [0, 4])
def test_the_clock_starts_after_the_first_step_of_a_session_which_compiles(out, clock, done):
  with Progress(Console(file=out), every=0).task("rl", 10) as task:
    task.start_from(done)
    assert (task.rate(), task.remaining()) == (0.0, "compiling")
    clock.now += 60
    task.advance()
    assert (task.rate(), task.remaining()) == (0.0, "-:-- left")
    clock.now += 2
    task.advance()
    assert (task.rate(), task.remaining()) == (0.5, f"0:{2 * (8 - done):02} left")
  assert out.getvalue().splitlines()[0] == f"rl: {done}/10 steps ({10 * done} %), compiling"


def test_a_finished_training_has_one_line_and_compiles_nothing(out):
  with Progress(Console(file=out)).task("rl", 10) as task:
    task.start_from(10)
  assert out.getvalue() == "rl: 10/10 steps (100 %)\n"


def test_a_terminal_gets_a_bar_and_tasks_nest():
  out = io.StringIO()
  progress = Progress(Console(file=out, force_terminal=True, width=160))
  with progress.task("rl", 10) as outer:
    outer.start_from(0)
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
