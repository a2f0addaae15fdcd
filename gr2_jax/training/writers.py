"""Metrics to files and back: JSONL always, TensorBoard when tensorboardX is installed, Weights & Biases on request."""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, TextIO

from gr2_jax.errors import ConfigError
from gr2_jax.files import replacing


class MetricWriter:
  """One JSON object a line: `step`, `time` (seconds of work since the start, over interruptions) and the values.

  `path`: the JSONL file; TensorBoard events go to a folder beside it, named after it.
  `wandb_project`: also log there, under the name `run_name`; raises ConfigError with the remedy when wandb is missing or refuses.
  `active`: False on every process but the first; then nothing is written.
  """

  def __init__(
    self, path: str | os.PathLike, *, wandb_project: str | None = None, run_name: str | None = None, active: bool = True
  ) -> None:
    self._path = pathlib.Path(path)
    self._active = active
    self._began = time.monotonic()
    self._file: TextIO | None = None
    self._tensorboard: Any = None
    self._wandb: Any = _start_wandb(wandb_project, run_name or self._path.stem) if active and wandb_project else None

  def resume(self, step: int) -> None:
    """Drops the lines past `step`, which the steps to come will write again; call it before the first `write`."""
    if self._active:
      self._open(step)

  def _open(self, step: int) -> TextIO:
    """The file behind the lines up to `step`, and TensorBoard's events beside it."""
    if self._file is not None:
      self._file.close()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
    kept = [line for line in lines if (written := _step_of(line)) is not None and written <= step]
    if len(kept) < len(lines):
      with replacing(self._path) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    before = json.loads(kept[-1])["time"] if kept else 0.0
    self._began = time.monotonic() - before
    self._file = self._path.open("a", encoding="utf-8")
    self._tensorboard = _start_tensorboard(self._path.with_suffix(""), step)
    return self._file

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line; NaN and infinities become null, which every JSON reader takes."""
    if not self._active:
      return
    file = self._open(step - 1) if self._file is None else self._file
    line: dict[str, float | None] = {"step": step, "time": round(time.monotonic() - self._began, 3)}
    line |= {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    file.write(json.dumps(line) + "\n")
    file.flush()
    if self._tensorboard is not None:
      for name, value in values.items():
        self._tensorboard.add_scalar(name, float(value), step)
    if self._wandb is not None:
      self._wandb.log(dict(values), step=step)

  def close(self) -> None:
    """Flushes and closes everything."""
    if self._file is not None:
      self._file.close()
      self._file = None
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None
    if self._wandb is not None:
      self._wandb.finish()
      self._wandb = None

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, float | None]]:
  """The lines that a MetricWriter wrote; none where there is no file, and without a line that a killed process left half-written."""
  path = pathlib.Path(path)
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if _step_of(line) is not None]


def _step_of(line: str) -> int | None:
  """The line's step; None for a line that a killed process left half-written."""
  try:
    return json.loads(line)["step"]
  except (json.JSONDecodeError, KeyError, TypeError):
    return None


def _start_tensorboard(directory: pathlib.Path, step: int) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  # TensorBoard itself hides events at and past purge_step that an earlier session wrote.
  return SummaryWriter(str(directory), purge_step=step + 1)


def import_wandb() -> Any:
  """The module; raises ConfigError with the remedy where it is not installed."""
  try:
    import wandb
  except ImportError as error:
    raise ConfigError(
      f"Weights & Biases was asked for but cannot be imported ({error}); run `pip install 'gr2_jax[wandb]'`, or leave wandb_project empty"
    ) from None
  return wandb


def _start_wandb(project: str, name: str) -> Any:
  wandb = import_wandb()
  try:
    return wandb.init(project=project, name=name, id=name.replace("/", "-"), resume="allow")
  except wandb.Error as error:
    raise ConfigError(
      f"--config.wandb_project: Weights & Biases refuses ({error}); run `wandb login`, or set WANDB_MODE=offline"
    ) from error
