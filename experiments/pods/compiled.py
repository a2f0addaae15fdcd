"""A step compiled for a pod: HBM of a device by kind, what the compiler counts, the program's work, and its time at least."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.estimates.flops import count_flops
from experiments.pods.chips import GIB, Chip
from experiments.pods.hlo import Work, read_work
from experiments.stage_steps import StageStep

_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": GIB, "T": 2.0**40, "": 1.0}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of HBM on a device: `arguments`, `outputs`, of which `aliased` take the place of arguments, `temporaries`, the `program`."""

  arguments: float
  outputs: float
  aliased: float
  temporaries: float
  program: float

  @property
  def total(self) -> float:
    """At the step's peak, at most."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Floor:
  """Seconds that a call takes at least, by what bounds it: matrix products, HBM, or the links between chips."""

  compute: float
  hbm: float
  ici: float

  @property
  def seconds(self) -> float:
    """Where all three overlap wholly."""
    return max(self.compute, self.hbm, self.ici)

  @property
  def bound(self) -> str:
    """The one that takes longest."""
    return max(("compute", "hbm", "ici"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step of a pod, and how it went, all of a device.

  `needed`: bytes of HBM; `fits`: into `held`. `memory` and what follows it are None where it does not fit, since then there is no program.
  `compiler`: flops and bytes of XLA's cost analysis, in which the body of a loop counts once. `model_flops`: of matrix products, as the
  step's trace has them, shared out over all devices alike: `work` has more of them where devices compute the same.
  """

  stage: str
  name: str
  mesh: Mapping[str, int]
  calls: int
  seconds: float
  model_flops: float
  needed: float
  held: float
  fits: bool
  memory: Memory | None = None
  compiler: Mapping[str, float] | None = None
  work: Work | None = None
  floor: Floor | None = None
  why: str = ""


def compile_step(step: StageStep, mesh: Mesh, chip: Chip) -> Compiled:
  """Compiles a step for the devices of a mesh."""
  begun = time.perf_counter()
  lowered = step.lower(mesh)
  flops = count_flops(step.function, *(argument.arrays for argument in step.arguments), trips=step.trips) / mesh.size
  about: dict[str, Any] = {"stage": step.stage, "name": step.name, "mesh": dict(mesh.shape), "calls": step.calls, "model_flops": flops}
  about["held"] = chip.hbm / chip.devices
  try:
    compiled: Any = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed, held = read_needed(str(error))
    return Compiled(
      **about | {"held": held or about["held"]}, seconds=time.perf_counter() - begun, needed=needed, fits=False, why=_first_line(error)
    )
  of = compiled.memory_analysis()
  memory = Memory(
    of.argument_size_in_bytes, of.output_size_in_bytes, of.alias_size_in_bytes, of.temp_size_in_bytes, of.generated_code_size_in_bytes
  )
  work = read_work(compiled.as_text(), step.trips)
  return Compiled(
    **about,
    seconds=time.perf_counter() - begun,
    needed=memory.total,
    fits=True,
    memory=memory,
    compiler=_read_costs(compiled.cost_analysis()),
    work=work,
    floor=time_floor(work, chip),
  )


def time_floor(work: Work, chip: Chip) -> Floor:
  """At the chip's published peaks, all links busy; a device has its share of the chip."""
  share = 1 / chip.devices
  return Floor(work.flops / (share * chip.flops), work.hbm / (share * chip.hbm_bandwidth), work.sent / (share * chip.ici_bandwidth))


def read_needed(message: str) -> tuple[float, float]:
  """Bytes that the compiler says a program needs, and that there are; 0 where it says neither."""
  # It says "for HLO temporaries", but arguments and outputs are among them.
  found = re.search(r"memory required .*?\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
  return (float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]) if found else (0.0, 0.0)


def _first_line(error: Exception) -> str:
  return next((line.strip() for line in str(error).splitlines() if "hbm" in line.lower()), str(error).splitlines()[0])


def _read_costs(costs: Any) -> dict[str, float] | None:
  """What the cost analysis has of these; None where it has nothing."""
  found = {name: float(costs[key]) for name, key in (("flops", "flops"), ("bytes", "bytes accessed")) if costs and key in costs}
  return found or None
