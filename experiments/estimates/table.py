"""An estimate in words: a table of its stages, and what stands behind the figures."""

from collections.abc import Callable, Sequence

import jax
from rich.console import Console
from rich.table import Table

from experiments.estimates.estimate import Estimate, StageEstimate
from gr2_jax.reports.tables import TABLE_STYLE
from gr2_jax.training.progress import format_seconds

_STEPS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_amount(amount: float, unit: str = "") -> str:
  """`1.23 MB`, with three digits; a dash for nothing."""
  if not amount:
    return "–"
  scale, prefix = next(((scale, prefix) for scale, prefix in _STEPS if amount >= scale), (1.0, ""))
  return f"{amount / scale:.3g} {prefix}{unit}".rstrip()


_COLUMNS: dict[str, Callable[[StageEstimate], str]] = {
  "parameters": lambda of: format_amount(of.parameters),
  "tokens": lambda of: format_amount(of.positions),
  "FLOPs": lambda of: format_amount(of.flops),
  "memory": lambda of: format_amount(of.memory, "B"),
  "disk": lambda of: format_amount(of.disk, "B"),
  "compiling": lambda of: format_seconds(of.compiling),
  "steps": lambda of: format_seconds(of.steps),
  "the rest": lambda of: format_seconds(of.host),
  "time": lambda of: format_seconds(of.seconds),
}


def print_estimate(found: Estimate, console: Console) -> None:
  """Prints it."""
  table = Table(**TABLE_STYLE)
  table.add_column("stage")
  for name in _COLUMNS:
    table.add_column(name, justify="right")
  for stage in found.stages:
    table.add_row(stage.name, *(write(stage) for write in _COLUMNS.values()))
  table.add_section()
  total = _add_up(found.stages)
  table.add_row(total.name, *(write(total) for write in _COLUMNS.values()))
  console.print(table)
  for line in _explain(found, total):
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _add_up(stages: Sequence[StageEstimate]) -> StageEstimate:
  """All stages, of parameters and memory the largest."""
  largest = {"parameters", "memory"}
  totals = {
    name: (max if name in largest else sum)(getattr(stage, name) for stage in stages) for name in StageEstimate._fields if name != "name"
  }
  return StageEstimate(name="all", **totals)


def _explain(found: Estimate, total: StageEstimate) -> list[str]:
  devices, machine = jax.devices(), found.machine
  return [
    f"Measured for {machine.measured:.0f} seconds on {len(devices)} x {devices[0].device_kind}, compilations apart: the steps of every "
    f"training at their own sizes, and a matrix product at {format_amount(machine.rate, 'FLOP/s')}. Nothing was written.",
    f"Of the time, {total.steps / total.seconds:.0%} is measured steps times their number; {total.compiling / total.seconds:.0%} is "
    f"compilation, which a second run is spared; {total.host / total.seconds:.0%}, the rest, is scaled from costs on a reference machine: "
    f"work on the host takes {machine.host_pace:.2g} times as long here as there.",
    f"While it was measured this process had {machine.share:.0%} of a processor. Where others keep the machine busy a run takes longer by "
    "as much as it waits.",
    "Tokens are positions of tokens or packed items in updates, padding among them. FLOPs are those of matrix products, on all devices "
    "together. Memory is that of a device in steps; on a CPU Python, its libraries and the data come on top, about 2 GB.",
    *found.notes,
  ]
