"""Which mesh, how many microbatches and whether to compute layers again: what fits of these, the fastest by its floor of time first."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.check import check_on_mesh
from experiments.pods.chips import Topology
from experiments.pods.compiled import Compiled, compile_step
from experiments.pods.devices import arrange
from experiments.pods.plan import check_rows, plan
from experiments.pods.report import format_gib, format_time
from experiments.stage_steps import StageStep
from gr2_jax.errors import ConfigError
from gr2_jax.runs.starts import foreseen_model
from gr2_jax.training.mesh import MESH_AXES

_MOST_MICROBATCHES = 64
# More microbatches are trusted to need no less than this share of what temporaries would take if they shrank alike.
_TRUSTED = 0.7


class Setting(NamedTuple):
  """What is chosen besides the mesh; `microbatches` is None for a stage that has none."""

  remat: bool
  microbatches: int | None

  def __str__(self) -> str:
    cut = "" if self.microbatches is None else f", microbatches {self.microbatches}"
    return f"remat {self.remat}{cut}"


class Tried(NamedTuple):
  """A setting on a mesh, and what became of it."""

  setting: Setting
  compiled: Compiled


def search(
  config: ConfigDict,
  topology: Topology,
  devices: list[jax.Device],
  asked: Sequence[str],
  *,
  teacher: str | None = None,
  most: int = 12,
  tell: Callable[[str], None] = lambda line: None,
) -> list[Tried]:
  """All that was compiled, what fits first, by time; at most so many compilations.

  Meshes whose arguments alone do not fit, or over which something does not divide, are left out before; the others come by what they
  would send, roughly. On a mesh the cheapest setting that fits is looked for, and those that would not fit by what others took are
  passed over. Raises ConfigError where `asked` is not one step, or what `plan` raises.
  """
  steps = _Steps(config, asked, teacher)
  meshes = sorted(_list_meshes(config, steps, topology, devices), key=lambda shape: _sent_roughly(config, steps.first, shape))
  tell(f"{len(meshes)} meshes hold the step's arguments; at most {most} compilations, the meshes that send least first")
  tried: list[Tried] = []
  for shape in meshes:
    mesh, seen = arrange(shape, topology, devices), dict[bool, tuple[int, float]]()
    held = sum(argument.bytes_on(mesh) for argument in steps.first.arguments)
    for setting in steps.settings(shape):
      cut = setting.microbatches or 1
      if setting.remat in seen:
        before, temporaries = seen[setting.remat]
        if held + _TRUSTED * temporaries * before / cut > topology.chip.hbm / topology.chip.devices:
          continue
      if len(tried) == most:
        return _rank(tried)
      found = compile_step(steps.of(setting), mesh, topology.chip)
      tried.append(Tried(setting, found))
      tell(f"{len(tried)} of {most}: {_describe(tried[-1])}")
      if found.fits:
        break
      seen[setting.remat] = cut, max(found.needed - held, 0.0)
  return _rank(tried)


def describe_best(tried: Sequence[Tried], number: int = 10) -> list[str]:
  """The best that fit, a line each."""
  fitting = [of for of in tried if of.compiled.fits][:number]
  if not fitting:
    return ["None of those that were compiled fits; take more chips, chips with more HBM, or fewer rows in a batch."]
  return [f"{place}. {_describe(of)}" for place, of in enumerate(fitting, 1)]


def _describe(tried: Tried) -> str:
  of = tried.compiled
  begin = f"mesh {','.join(str(size) for size in of.mesh.values())}, {tried.setting}: {format_gib(of.needed)} of {format_gib(of.held)} GiB"
  return f"{begin}, at least {format_time(of.floor.seconds)} ({of.floor.bound})" if of.floor else f"{begin}, does not fit"


def _rank(tried: Sequence[Tried]) -> list[Tried]:
  return sorted(tried, key=lambda of: of.compiled.floor.seconds if of.compiled.floor else math.inf)


class _Steps:
  """The one step that was asked for, under every setting."""

  def __init__(self, config: ConfigDict, asked: Sequence[str], teacher: str | None) -> None:
    self.config, self.asked, self.teacher = config, asked, teacher
    self._made: dict[Setting, StageStep] = {}
    shape = dict.fromkeys(MESH_AXES, 1)
    found = plan(config, shape, asked, teacher).steps
    if len(found) != 1:
      names = ", ".join(f"{step.stage}: {step.name}" for step in found)
      raise ConfigError(f"--search: {len(found)} steps were asked for ({names}); name one by --step='STAGE: STEP'")
    self.first = found[0]

  def settings(self, shape: Mapping[str, int]) -> Iterator[Setting]:
    """Those whose batches divide, the fewest microbatches first, each without and with layers computed again."""
    section = self.config.get(self.first.stage, {})
    cut = "microbatches" in section and self.first.trains
    numbers = [2**power for power in range(int(math.log2(_MOST_MICROBATCHES)) + 1)] if cut else [None]
    for number in numbers:
      for remat in (False, True) if self.first.trains else (False,):
        setting = Setting(remat, number)
        try:
          check_on_mesh(self.changed(setting), shape, [self.first.stage])
        except ConfigError:
          continue
        yield setting

  def of(self, setting: Setting) -> StageStep:
    """The step."""
    if setting not in self._made:
      self._made[setting] = plan(self.changed(setting), dict.fromkeys(MESH_AXES, 1), self.asked, self.teacher).steps[0]
    return self._made[setting]

  def changed(self, setting: Setting) -> ConfigDict:
    """The config."""
    config = copy.deepcopy(self.config)
    config.model.remat = setting.remat
    if setting.microbatches is not None:
      config[self.first.stage].microbatches = setting.microbatches
    return config


def _list_meshes(config: ConfigDict, steps: _Steps, topology: Topology, devices: list[jax.Device]) -> Iterator[dict[str, int]]:
  """Powers of two whose product is the number of devices, over which all divides, and that hold the arguments."""
  powers = int(math.log2(topology.devices))
  most = topology.chip.hbm / topology.chip.devices
  for fsdp in range(powers + 1):
    for tensor in range(powers + 1 - fsdp):
      shape = {"data": 2 ** (powers - fsdp - tensor), "fsdp": 2**fsdp, "tensor": 2**tensor}
      try:
        check_on_mesh(config, shape, [])
        check_rows(steps.first, shape)
      except ConfigError:
        continue
      mesh = arrange(shape, topology, devices)
      if sum(argument.bytes_on(mesh) for argument in steps.first.arguments) < most:
        yield shape


def _sent_roughly(config: ConfigDict, step: StageStep, shape: Mapping[str, int]) -> float:
  """Bytes that a device would send: parameters gathered over fsdp twice and gradients scattered, gradients reduced over data, and over
  tensor what each layer adds to its tokens, four times.
  """
  model, state = foreseen_model(config), step.arguments[0].arrays
  parameters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params if hasattr(state, "params") else state))
  data, fsdp, tensor = (shape[axis] for axis in MESH_AXES)
  tokens = step.positions / (data * fsdp)
  of_fsdp = 3 * parameters / tensor * (fsdp - 1) / fsdp
  of_data = 2 * parameters / (fsdp * tensor) * (data - 1) / data if step.trains else 0.0
  return of_fsdp + of_data + 8 * model.num_layers * tokens * model.width * 2 * (tensor - 1) / tensor
