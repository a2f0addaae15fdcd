"""What a stage works with: its run, its section of the config, and the artifacts of earlier stages, read when they are first asked for."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.splits import Split
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.runs import load, starts
from gr2_jax.runs.run import Run
from gr2_jax.steps.start import Start, load_params
from gr2_jax.teachers.sampling import Trace
from gr2_jax.training.checkpoints import Checkpointer
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.progress import Progress, Task
from gr2_jax.training.writers import MetricWriter


@dataclasses.dataclass(frozen=True, eq=False)
class Foreseen:
  """What stages will have to work with, before the stages that make it have run: of the same lengths, not of the same content.

  `slates` by split, and `traces` of some of the training slates (none where no stage makes any).
  """

  prompts: PromptContext
  style: PromptStyle
  slates: Mapping[str, tuple[Slate, ...]]
  traces: tuple[Trace, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class StageContext:
  """The stage `name` of a run, whose section of the config has the same name; `options` is the record of that section.

  `foreseen`, while the run looks ahead, takes the place of artifacts that are not there yet.

  Artifacts of stages that it does not declare are not its to read.
  """

  run: Run
  name: str
  progress: Progress
  stop: StopSignal
  options: Any = None
  foreseen: Foreseen | None = None

  @property
  def config(self) -> ConfigDict:
    """The whole config."""
    return self.run.config

  @property
  def seed(self) -> int:
    """The run's."""
    return self.run.config.seed

  @functools.cached_property
  def key(self) -> jax.Array:
    """A key of the run's seed for this stage, so that no two stages draw the same numbers."""
    return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(self.name.encode()))

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The run's devices."""
    return make_mesh(**self.config.mesh)

  @functools.cached_property
  def catalogue(self) -> Catalogue:
    """All items."""
    return load.load_catalogue(self.run)

  @functools.cached_property
  def split(self) -> Split:
    """The split of the whole log."""
    return load.load_split(self.run, self.catalogue)

  @functools.cached_property
  def log(self) -> tuple[History, ...]:
    """The interactions that counts may read, strictly before each request."""
    return load.load_log(self.run, self.catalogue)

  @functools.cached_property
  def prompts(self) -> PromptContext:
    """What prompts are made of."""
    return load.load_context(self.run, self.catalogue, self.log) if self.foreseen is None else self.foreseen.prompts

  @property
  def vocabulary(self) -> Vocabulary:
    """The run's tokens."""
    return self.prompts.vocabulary

  @functools.cached_property
  def style(self) -> PromptStyle:
    """How prompts are written and answered."""
    return load.prompt_style(self.run) if self.foreseen is None else self.foreseen.style

  @functools.cached_property
  def direct_style(self) -> PromptStyle:
    """The same prompts, answered without reasoning."""
    return load.style_of_mode(self.style, "direct")

  @functools.cached_property
  def decoder(self) -> Decoder:
    """The run's model, whole."""
    return load.make_decoder(self.run, self.vocabulary)

  def slates(self, split: str) -> tuple[Slate, ...]:
    """The re-ranking slates of a split."""
    return self._slates(split) if self.foreseen is None else self.foreseen.slates[split]

  @functools.cached_property
  def _slates(self) -> Callable[[str], tuple[Slate, ...]]:
    return functools.cache(lambda split: load.load_slates(self.run, self.catalogue, split))

  def constraint(self, style: PromptStyle) -> SlateConstraint | None:
    """The decoding constraint of answers in a style."""
    return load.slate_constraint(self.run, self.vocabulary, style)

  def most_new_tokens(self, style: PromptStyle, split: str = "train") -> int:
    """The limit of completions to the slates of a split."""
    return load.most_new_tokens(self.run, self.slates(split), self.vocabulary, style)

  def path(self, *names: str) -> pathlib.Path:
    """Where an artifact of this stage lies."""
    return self.run.path(self.name, *names)

  def checkpoints(self, stage: str, name: str = "checkpoints", about: Mapping[str, Any] | None = None) -> Checkpointer:
    """Those of a stage, or of the training `name` in it; `about`: see `Checkpointer`."""
    return Checkpointer(self.run.path(stage, name), about=about)

  def start(self, init: str) -> Start | None:
    """Where a training begins: at the policy of a stage, or for "model" where `config.model.init` says; None: at random numbers."""
    if init != starts.FROM_MODEL:
      return self.checkpoints(init)
    return starts.open_start(self.config, self.decoder, self.vocabulary)

  def load_params(self, stage: str, name: str = "checkpoints") -> Any:
    """Parameters at the end of a stage, or of the training `name` in it, on the mesh."""
    start = self.start(stage) if name == "checkpoints" else self.checkpoints(stage, name)
    assert start is not None, "a config whose stage begins at random numbers is refused before the run"
    return load_params(self.decoder, start, self.mesh)

  def metric_writer(self, name: str) -> MetricWriter:
    """Writes `RUN/metrics/NAME.jsonl`."""
    folder = "-".join(self.run.directory.parts[-2:])  # a sweep's runs differ in the folder above: VARIANT/seed_0
    project = self.config.wandb_project or None
    return MetricWriter(self.run.metrics_path(name), wandb_project=project, run_name=f"{folder}-{name}", active=self.run.main)

  def task(self, label: str, total: int, unit: str = "steps") -> AbstractContextManager[Task]:
    """A progress bar."""
    return self.progress.task(label, total, unit)

  def on_progress(self, task: Task) -> Callable[[int], None]:
    """`done -> None`: moves the bar, and stops the stage where a signal asked for it."""

    def report(done: int) -> None:
      task.update(done)
      self.stop.check()

    return report

  def say(self, text: str) -> None:
    """A line under the stage's bars."""
    self.progress.note(f"  {text}")
