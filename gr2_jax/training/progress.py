"""Progress of a stage: a live bar on a terminal, a plain line every few seconds in a log."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from gr2_jax.printable import escape_controls, escape_lines


class Task:
  """One bar; made by `Progress.task`. Its clock starts when the first units are done, since those hold what is compiled."""

  def __init__(self, show: Callable[["Task"], None], total: int, every: float, headline: Sequence[str]) -> None:
    self._show = show
    self._every = every
    self._headline = headline
    self._shown = time.monotonic()
    self._news = True  # something that was not shown yet
    self._before = 0
    self._waiting = "starting"
    self._clock: tuple[float, int] | None = None  # when it started, and the units done by then
    self.total = total
    self.done = 0
    self.values: dict[str, float] = {}

  def start_from(self, done: int) -> None:
    """Work begins by compiling; what an earlier session did is shown as done and left out of the rate."""
    self._before = self.done = done
    self._waiting = "compiling"
    if done < self.total:
      self._show_now()

  def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
    """`done` of `total` units; `values` are the latest metrics and stay until replaced."""
    self.done = done
    self.values |= values or {}
    self._news = True
    now = time.monotonic()
    if self._clock is None and done > self._before:
      self._clock = (now, done)
    if self._every == 0 or now - self._shown >= self._every:
      self._show_now()

  def advance(self, amount: int = 1) -> None:
    """`amount` more units are done."""
    self.update(self.done + amount)

  def finish(self) -> None:
    """Shows the last values, even when they came too early for a line; not twice."""
    if self._news:
      self._show_now()

  def rate(self) -> float:
    """Units a second since the clock started, 0 while unknown."""
    if self._clock is None:
      return 0.0
    began, done = self._clock
    elapsed = time.monotonic() - began
    return (self.done - done) / elapsed if elapsed > 0 else 0.0

  def remaining(self) -> str:
    """Remaining time at this rate; what keeps the first units waiting; nothing when all is done."""
    if self.done >= self.total:
      return ""
    if self._clock is None:
      return self._waiting
    rate = self.rate()
    return f"{format_seconds((self.total - self.done) / rate)} left" if rate > 0 else "-:-- left"

  def figures(self) -> str:
    """The latest metrics on one line: those of the headline, or all where it is empty."""
    names = [name for name in self._headline if name in self.values] if self._headline else self.values
    return "  ".join(f"{name} {self.values[name]:.4g}" for name in names)

  def _show_now(self) -> None:
    self._shown = time.monotonic()
    self._news = False
    self._show(self)


class Progress:
  """The progress of a run. `console` decides whether there is a terminal; `every`: seconds between plain lines."""

  def __init__(self, console: Console | None = None, every: float = 10.0) -> None:
    self.console = console or Console()
    self._every = every
    self._bars: Bars | None = None

  def note(self, text: str) -> None:
    """A line of its own, above the bars."""
    self.console.print(escape_lines(text), highlight=False, markup=False, soft_wrap=True)

  @contextmanager
  def task(self, name: str, total: int, unit: str = "steps", headline: Sequence[str] = ()) -> Iterator[Task]:
    """A bar of `total` units while the context lasts; tasks may nest. `headline`: the metrics to show, all by default."""
    if not self.console.is_terminal:
      task = Task(lambda t: self.note(_plain_line(name, unit, t)), total, self._every, headline)
      yield task
      task.finish()
      return
    outermost = self._bars is None
    if self._bars is None:
      self._bars = _make_bars(self.console)
      self._bars.start()
    bars = self._bars
    row = bars.add_task(escape_controls(name), total=total, rate="", remaining="starting", figures="")

    def show(t: Task) -> None:
      bars.update(row, completed=t.done, rate=_rate(t, unit), remaining=t.remaining(), figures=t.figures())

    task = Task(show, total, 0, headline)
    try:
      yield task
      task.finish()
    finally:
      if outermost:
        bars.stop()
        self._bars = None


def format_seconds(seconds: float) -> str:
  """`m:ss` or `h:mm:ss`."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(task: Task, unit: str) -> str:
  rate = task.rate()
  return f"{rate:.3g} {unit}/s" if rate > 0 else ""


def _plain_line(name: str, unit: str, task: Task) -> str:
  share = f" ({100 * task.done / task.total:.0f} %)" if task.total else ""
  parts = (f"{name}: {task.done}/{task.total} {unit}{share}", _rate(task, unit), task.remaining())
  return f"{', '.join(filter(None, parts))}  {task.figures()}".rstrip()


def _make_bars(console: Console) -> Bars:
  return Bars(
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rate]}"),
    TextColumn("{task.fields[remaining]}"),
    TextColumn("{task.fields[figures]}", style="dim", markup=False),
    console=console,
    refresh_per_second=4,
  )
