"""Checkpoints by Orbax: the state, the position in the data, and a format tag, written together or not at all."""

import errno
import functools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gr2_jax.errors import UserError

FORMAT = "gr2_jax.train_state.2"


class CheckpointError(UserError):
  """Checkpoints that exist but cannot be used; the message names the folder and what to do."""


class Checkpointer:
  """The newest `keep` checkpoints of one stage, in `directory/STEP/{state,data,format}`.

  `about` (JSON) goes into each that is saved, beside the format tag: what its parameters are, where they are not those of a whole model.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2, about: Mapping[str, Any] | None = None) -> None:
    self.directory = pathlib.Path(directory).absolute()
    self._keep, self._about = keep, about or {}

  @functools.cached_property
  def _manager(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      create=True,
      cleanup_tmp_directories=True,
      # On CPU the host copy of a background save may alias a buffer that the next step's donation overwrites.
      enable_async_checkpointing=jax.default_backend() != "cpu",
    )
    return ocp.CheckpointManager(self.directory, options=options)

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    if not self.directory.is_dir():
      return []
    return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

  def save(self, step: int, state: Any, data_state: Any) -> None:
    """Writes `state` (pytree of arrays) and this process's `data_state` (JSON); every process must call it at the same step.

    Raises OSError where the disk has no room for the arrays, before any is written.
    """
    self.directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(self.directory).free < _size_here(state):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        data=ocp.args.JsonSave({"positions": _gather_json(data_state)}),
        format=ocp.args.JsonSave({"format": FORMAT, **self._about}),
      ),
    )

  def restore_latest(self, abstract_state: Any) -> tuple[Any, Any, int] | None:
    """`(state, data_state, step)` of the newest checkpoint that can be read, or None when there is none.

    `abstract_state`: shapes and dtypes, with shardings where arrays are to be born. A damaged checkpoint is set aside
    (renamed, not deleted) with a warning. Raises CheckpointError for one of another model, and when all are damaged.
    """
    failures: dict[int, Exception] = {}
    for step in reversed(self.steps()):
      try:
        state, data_state = self._restore(step, abstract_state)
      except CheckpointError:
        raise
      except Exception as error:  # Orbax and TensorStore report damage as many different types.
        self._check_fit(step, abstract_state)
        failures[step] = error
        continue
      for damaged, failure in failures.items():
        self._set_aside(damaged, failure, used=step)
      return state, data_state, step
    if failures:
      reasons = "; ".join(f"step {step}: {_first_sentence(failure)}" for step, failure in failures.items())
      raise CheckpointError(f"{self.directory}: all checkpoints are damaged ({reasons}); restore one, or remove the folder to begin anew")
    return None

  def load_params(self, abstract_params: Any) -> Any:
    """The parameters alone of the newest checkpoint, placed by the shardings of `abstract_params`.

    Raises CheckpointError when there is none, when it is of another model, or when it is damaged: an older one is no end of a training.
    """
    steps = self.steps()
    if not steps:
      raise CheckpointError(f"{self.directory}: no checkpoint here; delete the stage's folder and start again, so that it is run anew")
    item = {"params": abstract_params}
    restore = ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      try:
        return reader.restore(self.directory / str(steps[-1]) / "state", args=restore)["params"]
      except Exception as error:
        self._check_fit(steps[-1], item)
        raise self._damage(steps[-1], error) from error

  def read_about(self) -> dict[str, Any]:
    """What the newest checkpoint says of itself: its format, and the `about` of who saved it; nothing where there is no checkpoint.

    Raises CheckpointError for one that is damaged.
    """
    if not (steps := self.steps()):
      return {}
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
      try:
        return dict(reader.restore(self.directory / str(steps[-1]) / "format"))
      except Exception as error:
        raise self._damage(steps[-1], error) from error

  def close(self) -> None:
    """Waits for saves under way."""
    if "_manager" in self.__dict__:
      self._manager.close()
      del self._manager

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _restore(self, step: int, abstract_state: Any) -> tuple[Any, Any]:
    side = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore(), format=ocp.args.JsonRestore()))
    if side.format["format"] != FORMAT:
      raise CheckpointError(
        f"{self.directory}: step {step} has the format {side.format['format']!r}, this version reads {FORMAT!r}; use another --workdir"
      )
    positions = side.data["positions"]
    if len(positions) != jax.process_count():
      raise CheckpointError(
        f"{self.directory}: saved by {len(positions)} processes, read by {jax.process_count()}; go on with as many processes"
      )
    restore = ocp.args.PyTreeRestore(abstract_state, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state))
    state = self._manager.restore(step, args=ocp.args.Composite(state=restore)).state
    return state, positions[jax.process_index()]

  def _check_fit(self, step: int, abstract: Any) -> None:
    """Raises CheckpointError when a checkpoint was written, whole or not, from arrays of other names or shapes than `abstract`."""
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        saved = _shapes(reader.metadata(self.directory / str(step) / "state").item_metadata.tree)
    except Exception:
      return  # damaged to the point that it cannot be told
    wanted = _shapes(abstract)
    differing = [name for name, shape in wanted.items() if saved and saved.get(name) != shape]
    if differing:
      name, there = ".".join(differing[0]), saved.get(differing[0], "missing")
      raise CheckpointError(
        f"{self.directory}: step {step} does not fit this model ({name} is {there} there, {wanted[differing[0]]} here); "
        "use the config that trained it, or another --workdir"
      )

  def _damage(self, step: int, error: Exception) -> CheckpointError:
    stage = self.directory.parent
    return CheckpointError(
      f"{self.directory}: the checkpoint of step {step} is damaged ({_first_sentence(error)}); restore it, or remove {stage} "
      f"and run the stage {stage.name!r} again"
    )

  def _set_aside(self, step: int, error: Exception, used: int) -> None:
    folder = self.directory / str(step)
    aside = self.directory / f"damaged-{step}"
    logging.warning("%s cannot be read (%s); going on from step %d, the damaged one is now %s", folder, _first_sentence(error), used, aside)
    if jax.process_index() == 0:
      folder.rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("set aside")
    self._manager.reload()


def _size_here(state: Any) -> int:
  """Bytes of the arrays that this process writes, before they are packed."""
  leaves = jax.tree.leaves(state)
  shards = [shard for leaf in leaves if isinstance(leaf, jax.Array) for shard in leaf.addressable_shards if shard.replica_id == 0]
  return sum(shard.data.nbytes for shard in shards) + sum(np.asarray(leaf).nbytes for leaf in leaves if not isinstance(leaf, jax.Array))


def _gather_json(value: Any) -> list[Any]:
  """The values of all processes, in their order: with packing, each stands at another place of its share of the data."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
  rows = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
  return [json.loads(bytes(np.asarray(row, np.uint8))) for row in rows]


def _shapes(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Path -> shape of each array."""
  return {tuple(map(str, path)): tuple(leaf.shape) for path, leaf in ocp.tree.to_flat_dict(tree).items() if hasattr(leaf, "shape")}


def _first_sentence(error: Exception) -> str:
  lines = str(error).splitlines()
  return lines[0].split(". ")[0][:300] if lines else type(error).__name__
