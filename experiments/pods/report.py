"""What was compiled for a pod, as tables and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments.estimates.table import format_amount
from experiments.pods.chips import GIB, Topology
from experiments.pods.compiled import Compiled
from gr2_jax.training.progress import format_seconds


def to_record(topology: Topology, found: Sequence[Compiled], notes: Sequence[str]) -> dict[str, Any]:
  """All figures: bytes, FLOPs and seconds of a call, on a device."""
  chip = dataclasses.asdict(topology.chip)
  steps = [_to_step(of) for of in found]
  return {"topology": topology.name, "chips": topology.chips, "devices": topology.devices, "chip": chip, "steps": steps, "notes": [*notes]}


def _to_step(of: Compiled) -> dict[str, Any]:
  record = dataclasses.asdict(of)
  if of.work is not None:
    record["work"]["collectives"] = {kind: one._asdict() for kind, one in of.work.collectives.items()}
    record["work"]["sent"] = of.work.sent
  if of.memory is not None:
    record["memory"]["total"] = of.memory.total
  if of.floor is not None:
    record["floor"] |= {"seconds": of.floor.seconds, "bound": of.floor.bound}
  return record


def format_gib(amount: float) -> str:
  """Of bytes."""
  return f"{amount / GIB:.2f}"


def format_time(seconds: float) -> str:
  """Three digits of seconds, milliseconds or microseconds."""
  for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
    if seconds >= scale:
      return f"{seconds / scale:.3g} {unit}"
  return f"{seconds / 1e-6:.2g} µs"


def print_found(topology: Topology, found: Sequence[Compiled], notes: Sequence[str], console: Console) -> None:
  """Prints it."""
  parts = (_describe_step(of) for of in found)
  for line in (_describe(topology, found), *(line for part in parts for line in ("", *part)), "", *_EXPLAINED, *notes):
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _describe(topology: Topology, found: Sequence[Compiled]) -> str:
  chip, mesh = topology.chip, " x ".join(f"{name} {size}" for name, size in found[0].mesh.items())
  devices = f"{topology.devices} devices, {chip.devices} a chip" if chip.devices > 1 else "a device each"
  return (
    f"{topology.name}: {topology.chips} chips, {devices}; mesh {mesh}. A chip: {chip.hbm / GIB:.0f} GiB, {chip.flops / 1e12:,.0f} TFLOP/s "
    f"bfloat16, HBM {chip.hbm_bandwidth / 1e9:,.0f} GB/s, links {chip.ici_bandwidth / 1e9:,.0f} GB/s out."
  )


def _describe_step(of: Compiled) -> list[str]:
  title = f"{of.stage}: {of.name}"
  if of.memory is None or of.work is None or of.floor is None:
    needed = f"{format_gib(of.needed)} GiB" if of.needed else "more"
    return [
      f"{title} (compiled in {format_seconds(of.seconds)})",
      f"  HBM {needed} of {format_gib(of.held)} GiB: does not fit.",
      f"  {of.why}",
    ]
  memory, work, floor = of.memory, of.work, of.floor
  counted = {name: format_amount(amount) for name, amount in (of.compiler or {}).items()}
  kinds = sorted(work.collectives.items(), key=lambda item: -item[1].bytes)
  sent = ", ".join(f"{one.run:,.0f} x {kind} {format_amount(one.bytes, 'B')}" for kind, one in kinds)
  return [
    f"{title} (compiled in {format_seconds(of.seconds)})",
    f"  HBM {format_gib(memory.total)} of {format_gib(of.held)} GiB: fits. Arguments {format_gib(memory.arguments)}, outputs "
    f"{format_gib(memory.outputs)}, of them aliased {format_gib(memory.aliased)}, temporaries {format_gib(memory.temporaries)}, program "
    f"{format_gib(memory.program)}.",
    f"  FLOPs {format_amount(work.flops)} (the model's share {format_amount(of.model_flops)}; XLA {counted.get('flops', 'gives none')}), "
    f"HBM {format_amount(work.hbm, 'B')} (XLA {counted.get('bytes', 'gives none')}), sent {format_amount(work.sent, 'B')}: "
    f"{sent or 'nothing'}.",
    f"  At least {format_time(floor.seconds)}, bound by {BOUNDS[floor.bound]}: compute {format_time(floor.compute)}, HBM "
    f"{format_time(floor.hbm)}, links {format_time(floor.ici)}.",
  ]


BOUNDS = {"compute": "compute", "hbm": "HBM", "ici": "links"}
_EXPLAINED = (
  "All figures are a device's, of one call. HBM is that of arguments, outputs that take no argument's place, temporaries and the program.",
  "FLOPs are those of matrix products in the compiled program; the model's share: the same as the step's trace has them, shared out over "
  "all devices; where the program has more, devices compute the same. XLA's cost analysis counts the body of a loop once.",
  "What a device sends for collectives is counted as in rings. The time is the longest of compute, HBM and links at published peaks, each "
  "overlapping the others wholly: a floor, which real steps do not reach.",
)
