"""An estimate of a run, stage by stage: what its config and data say, and what a few seconds on this machine make of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.estimates.data import count_data
from experiments.estimates.disk import count_bytes, disk_bytes
from experiments.estimates.host import host_seconds
from experiments.estimates.measure import Machine, Measured, measure_steps
from experiments.stage_steps import Sizes, StageStep, list_steps
from experiments.stages import load_stages
from gr2_jax.runs.stages import needed_stages
from gr2_jax.training.mesh import make_mesh


class StageEstimate(NamedTuple):
  """Of a stage: `parameters` that are trained, `positions` that they are trained on (tokens or items), `flops` of matrix products, bytes of
  `memory` on a device at most and of `disk`, and seconds: `compiling`, of compiled `steps`, and of what the `host` does besides.
  """

  name: str
  parameters: int
  positions: int
  flops: float
  memory: float
  disk: float
  compiling: float
  steps: float
  host: float

  @property
  def seconds(self) -> float:
    """Where nothing was compiled before."""
    return self.compiling + self.steps + self.host


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The stages that a config needs, what was found of the `machine`, and in `notes` sentences about what was assumed."""

  stages: tuple[StageEstimate, ...]
  machine: Machine
  notes: tuple[str, ...]


def estimate(config: ConfigDict, seconds: float = 10.0, mesh: Mesh | None = None) -> Estimate:
  """Of a run of this config on this machine, measured for about so many `seconds`; without a `mesh`, on the config's.

  Raises what `count_data` raises.
  """
  mesh = make_mesh(**config.mesh) if mesh is None else mesh
  counted = count_data(config)
  names = [needed.name for needed in needed_stages(load_stages(), config)]
  by_stage = {name: list_steps(config, counted.sizes, name) for name in names}
  every = [step for name in names for step in by_stage[name]]
  measured, machine = measure_steps(every, mesh, seconds)
  found = dict(zip(every, measured, strict=True))
  stages = tuple(_estimate_stage(config, counted.sizes, name, steps, found, machine) for name, steps in by_stage.items())
  return Estimate(stages, machine, (*counted.notes, *_list_notes(config, names, found)))


def _estimate_stage(
  config: ConfigDict, sizes: Sizes, name: str, steps: Sequence[StageStep], found: dict[StageStep, Measured], machine: Machine
) -> StageEstimate:
  trained = [step for step in steps if step.trains]
  parameters = max((_count_parameters(step) for step in trained), default=0)
  held = max((count_bytes(step.arguments[0].arrays) for step in steps), default=0.0)
  return StageEstimate(
    name,
    parameters,
    positions=sum(step.calls * step.positions for step in trained),
    flops=sum(step.calls * found[step].flops for step in steps),
    memory=held + max((found[step].memory for step in steps), default=0.0),
    disk=disk_bytes(config, sizes, name, steps),
    compiling=sum(found[step].compile_seconds for step in steps),
    steps=sum(step.calls * found[step].seconds for step in steps),
    host=machine.host_pace * host_seconds(config, sizes, name, steps),
  )


def _count_parameters(step: StageStep) -> int:
  """Of a training's state, or of the pair of parameters and an optimizer's state."""
  state = step.arguments[0].arrays
  return sum(math.prod(x.shape) for x in jax.tree.leaves(state.params if hasattr(state, "params") else state[0]))


def _list_notes(config: ConfigDict, names: Sequence[str], found: dict[StageStep, Measured]) -> list[str]:
  notes = []
  if untimed := [f"{step.stage}: {step.name}" for step, of in found.items() if not of.timed]:
    notes.append(
      f"Not run, since too long for this measurement or too large for this machine, but scaled by FLOPs: {', '.join(untimed)}. What is "
      "scaled so may be several times off."
    )
  if config.answer.form == "written":
    notes.append("Prompts and answers are taken to be as long as they may be; real ones are shorter.")
    if rounds := [f"{name} {config[name].max_rounds}" for name in ("rl", "direct") if name in names and config[name].dynamic_sampling]:
      notes.append(f"A step is taken to play as many rounds of rollouts as it may ({', '.join(rounds)}).")
  if "opd" in names:
    notes.append("The teacher of opd is taken to be as large as the student.")
  if "compress" in names:
    notes.append(
      "Histories are taken to have as many items as a prompt shows, each field of an item as many tokens as on the synthetic market."
    )
  if {"rewriter"} <= {*config.compress.variants} and config.compress.rewriter.judge == "chat":
    notes.append("What the endpoint that judges the rewriter's texts takes is not counted.")
  return notes
