"""The evidence that a run keeps with its slates: written by the stage `evidence`, read by trees, policies and evaluation."""

import dataclasses
import functools
import json
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import SPLITS
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.files import replacing, write_json
from gr2_jax.runs.run import Run

_STAGE = "evidence"


@dataclasses.dataclass(frozen=True, eq=False)
class FactTables:
  """All facts of all slates of a run, and the `codes` of those that policies read."""

  run: Run

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """Of all facts, in the order of the tables' last axis."""
    return tuple(json.loads(self.run.path(_STAGE, "facts.json").read_bytes()))

  @functools.cached_property
  def codes(self) -> FactCodes:
    """Of the facts that policies read; its `names` say which."""
    return FactCodes.load(self.run.path(_STAGE, "codes.npz"))

  def read(self, split: str, names: Sequence[str] | None = None) -> np.ndarray:
    """Facts `[n, K, F]` of a split's slates, those that policies read for None."""
    return np.ascontiguousarray(self._table(split)[..., [self.names.index(name) for name in names or self.codes.names]])

  @functools.cached_property
  def longest(self) -> int:
    """Candidates of the longest slate."""
    return max(self._table(split).shape[1] for split in SPLITS)

  def _table(self, split: str) -> np.ndarray:
    return np.load(self.run.path(_STAGE, f"facts_{split}.npy"), mmap_mode="r")

  @functools.cached_property
  def teacher(self) -> np.ndarray:
    """The out-of-fold tree's scores `[n, K]` of the training slates; raises FileNotFoundError without `evidence.tree`."""
    return np.load(self.run.path(_STAGE, "teacher.npy"))


def write_fact_tables(
  run: Run, names: Sequence[str], tables: dict[str, np.ndarray], codes: FactCodes, teacher: np.ndarray | None = None
) -> None:
  """Writes what `FactTables` reads: facts `[n, K, F]` by split, and the teacher's scores of the training slates where there are any."""
  arrays = {f"facts_{split}": table for split, table in tables.items()} | ({} if teacher is None else {"teacher": teacher})
  for name, array in arrays.items():
    with replacing(run.path(_STAGE, f"{name}.npy")) as partial, open(partial, "wb") as file:
      np.save(file, array)
  write_json(run.path(_STAGE, "facts.json"), list(names))
  codes.save(run.path(_STAGE, "codes.npz"))
