"""The evidence that a run keeps with its slates: written by the stage `evidence`, read by trees, policies and evaluation."""

import dataclasses
import functools
import json
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import SPLITS, DataError
from gr2_jax.evidence.codes import FactCodes
from gr2_jax.files import replacing, write_json
from gr2_jax.runs.run import Run
from gr2_jax.teachers.tree import FoldTrees

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
    return np.ascontiguousarray(self.table(split)[..., [self.names.index(name) for name in names or self.codes.names]])

  @functools.cached_property
  def longest(self) -> int:
    """Candidates of the longest slate."""
    return max(self.table(split).shape[1] for split in SPLITS)

  def table(self, split: str) -> np.ndarray:
    """All facts `[n, K, F]` of a split's slates, on disk."""
    return np.load(self.run.path(_STAGE, f"facts_{split}.npy"), mmap_mode="r")

  @functools.cached_property
  def teacher(self) -> np.ndarray:
    """The out-of-fold tree's scores `[n, K]` of the training slates; raises FileNotFoundError without `evidence.tree`."""
    return np.load(self.run.path(_STAGE, "teacher.npy"))

  @functools.cached_property
  def trees(self) -> FoldTrees:
    """The trees that gave these scores. Raises DataError where they were not kept."""
    path = self.run.path(_STAGE, "trees.json")
    if not path.exists():
      raise DataError(f"{path}: not there, as an older version kept no trees; remove the folder {path.parent} and run the stage again")
    texts = json.loads(path.read_bytes())
    return FoldTrees.from_texts(texts, np.load(self.run.path(_STAGE, "tree_folds.npy")))


def write_fact_tables(
  run: Run, names: Sequence[str], tables: dict[str, np.ndarray], codes: FactCodes, teacher: np.ndarray | None = None
) -> None:
  """Writes what `FactTables` reads: facts `[n, K, F]` by split, and the teacher's scores of the training slates where there are any."""
  arrays = {f"facts_{split}": table for split, table in tables.items()} | ({} if teacher is None else {"teacher": teacher})
  for name, array in arrays.items():
    _write_array(run, name, array)
  write_json(run.path(_STAGE, "facts.json"), list(names))
  codes.save(run.path(_STAGE, "codes.npz"))


def write_trees(run: Run, trees: FoldTrees) -> None:
  """Writes the trees behind the teacher's scores."""
  _write_array(run, "tree_folds", trees.fold_of)
  write_json(run.path(_STAGE, "trees.json"), trees.texts)


def _write_array(run: Run, name: str, array: np.ndarray) -> None:
  with replacing(run.path(_STAGE, f"{name}.npy")) as partial, open(partial, "wb") as file:
    np.save(file, array)
