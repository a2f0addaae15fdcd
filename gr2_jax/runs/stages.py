"""What a stage declares, and which stages a config needs, in which order."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from gr2_jax.runs.context import Foreseen, StageContext
from gr2_jax.runs.fingerprints import value_at
from gr2_jax.runs.policies import PolicyRecord
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.settings import read_record
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.progress import Progress


class Init(NamedTuple):
  """The dotted config key that names the stage from whose parameters a stage starts, and what it may name: stages, and FROM_MODEL."""

  key: str
  choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of a run: `run(context)` writes the artifacts of `RUN/name/`. Runner, check, evaluation and serving read all else from here.

  `reads`: top-level config keys that decide its artifacts; `unused(config)`: dotted keys below them that decide nothing with this config.
  `options`: the record of its section (see `gr2_jax.settings`), with all defaults; None for a stage without one.
  `inputs`: stages whose artifacts it reads.
  `files`: dotted config keys that may hold the path of an external file or folder it reads.
  `init`: one more input, named by the config. `uses`: inputs only where the config needs them for other stages, or, with `needs(config)`,
  those that this names (see `needed_stages`); `uses_policies`: those that leave a policy are among them. `when`: the dotted config key of a
  stage that nothing else needs, run only where that is true or not empty. `runs`: pairs of dotted config keys, the directory of another run
  and its stage read.
  `format`: raised when the code writes other artifacts for the same inputs.
  `check(config)` raises ConfigError naming the key of a value that the stage could not use. `batches(config)`: dotted key -> (rows at once,
  gradient steps and parts that they are cut into), which must divide over the mesh. `policies(config)`: what the stage leaves.
  `foresee(context)`: what the run's data make of its settings, told before any training: lines `--config.KEY: fault`, from a context whose
  `foreseen` is set.
  """

  name: str
  run: Callable[[StageContext], None]
  reads: tuple[str, ...]
  options: type | None = None
  inputs: tuple[str, ...] = ()
  files: tuple[str, ...] = ()
  init: Init | None = None
  uses: tuple[str, ...] = ()
  needs: Callable[[ConfigDict], tuple[str, ...]] | None = None
  uses_policies: bool = False
  when: str = ""
  runs: tuple[tuple[str, str], ...] = ()
  format: int = 1
  unused: Callable[[ConfigDict], tuple[str, ...]] | None = None
  check: Callable[[ConfigDict], None] | None = None
  batches: Callable[[ConfigDict], Mapping[str, tuple[int, int]]] | None = None
  policies: Callable[[ConfigDict], tuple[PolicyRecord, ...]] | None = None
  foresee: Callable[[StageContext], list[str]] | None = None


@dataclasses.dataclass(frozen=True)
class NeededStage:
  """A stage that a config needs, with all its inputs spelt out; `place`: its number among all stages."""

  stage: Stage
  inputs: tuple[str, ...]
  place: int

  @property
  def name(self) -> str:
    """The stage's."""
    return self.stage.name


def sort_stages(stages: Iterable[Stage]) -> list[Stage]:
  """The stages so that each comes after all that it may read, those that are free to choose by name. Raises RunError for a cycle."""
  by_name = {stage.name: stage for stage in stages}
  policies = tuple(name for name, stage in by_name.items() if stage.policies is not None)
  ahead = {
    name: {*stage.inputs, *(stage.init.choices if stage.init else ()), *stage.uses, *(policies if stage.uses_policies else ())} - {name}
    for name, stage in by_name.items()
  }
  ordered: list[Stage] = []
  while ahead:
    placed = {stage.name for stage in ordered}
    ready = sorted(name for name, inputs in ahead.items() if inputs & by_name.keys() <= placed)
    if not ready:
      raise RunError(f"stages wait for each other: {', '.join(sorted(ahead))}; see what they declare as inputs")
    ordered.append(by_name[ready[0]])
    del ahead[ready[0]]
  return ordered


def needed_stages(stages: Sequence[Stage], config: ConfigDict) -> list[NeededStage]:
  """The stages that lead to the last one or are asked for by this config, in order.

  Raises RunError for an `init` that is no stage to start from, or that the config lacks.
  """
  inputs = {stage.name: stage.inputs + _init_of(stage, config) for stage in stages}
  called_for = {stage.name: stage.needs(config) for stage in stages if stage.needs is not None}
  needed: set[str] = set()
  ahead = [stages[-1].name, *(stage.name for stage in stages if stage.when and value_at(config, stage.when))]
  while ahead:
    name = ahead.pop()
    if name not in inputs:
      raise RunError(f"{name!r} is no stage to read from; there are: {', '.join(inputs)}")
    if name not in needed:
      needed.add(name)
      ahead += (*inputs[name], *called_for.get(name, ()))
  policies = tuple(stage.name for stage in stages if stage.policies is not None)
  return [
    NeededStage(
      stage, tuple(dict.fromkeys((*inputs[stage.name], *called_for.get(stage.name, (name for name in uses if name in needed))))), place
    )
    for place, stage in enumerate(stages)
    if stage.name in needed
    for uses in [stage.uses + (policies if stage.uses_policies else ())]
  ]


def _init_of(stage: Stage, config: ConfigDict) -> tuple[str, ...]:
  if stage.init is None:
    return ()
  try:
    name = value_at(config, stage.init.key)
  except KeyError:
    raise RunError(f"the config lacks {stage.init.key}, which names the stage to start from; add it to the config file") from None
  if name not in stage.init.choices:
    raise RunError(f"--config.{stage.init.key}: {name!r} is no stage to start from; choose {' or '.join(stage.init.choices)}")
  return () if name == FROM_MODEL else (name,)


def open_context(run: Run, stage: Stage, progress: Progress, stop: StopSignal, foreseen: Foreseen | None = None) -> StageContext:
  """What the stage works with; raises ConfigError for a section that cannot be used."""
  options = None if stage.options is None else read_record(stage.options, run.config, stage.name)
  return StageContext(run, stage.name, progress, stop, options, foreseen)
