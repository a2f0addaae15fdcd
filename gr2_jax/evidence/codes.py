"""Facts as a model reads them: piecewise-linear codes over the quantiles of the training slates."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from gr2_jax.files import replacing


@dataclasses.dataclass(frozen=True, eq=False)
class FactCodes:
  """Where the bins of each fact end: `edges [F, B + 1]` ascending, for the facts `names`.

  A value's code has a number in 0..1 for each bin: how far it has come through it (Gorishniy et al. 2022, "piecewise linear encoding").
  Bins that a fact with few values does not need have no width; there the number steps from 0 to 1 at the edge.
  """

  names: tuple[str, ...]
  edges: np.ndarray

  @property
  def bins(self) -> int:
    """Of each fact."""
    return self.edges.shape[1] - 1

  @classmethod
  def fit(cls, table: np.ndarray, real: np.ndarray, names: Sequence[str], *, bins: int) -> "FactCodes":
    """Quantiles of each fact over all candidates: `table [n, K, F]`, `real [n, K]` true at candidates."""
    values = np.asarray(table[real], np.float64)
    return cls(tuple(names), np.quantile(values, np.linspace(0, 1, bins + 1), axis=0).T.astype(np.float32))

  def buckets(self, names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """The quantile bucket 0..B - 1 of values `[..., F]` of facts `names`: the last bin into which the value's code has come.

    A value in bucket b is above at least b / B of the candidates of the training slates.
    """
    edges = self.edges[[self.names.index(name) for name in names]]
    return np.maximum((values[..., None] > edges[:, :-1]).sum(axis=-1) - 1, 0)

  @classmethod
  def load(cls, path: pathlib.Path) -> "FactCodes":
    """Reads what `save` wrote."""
    with np.load(path) as file:
      return cls(tuple(file["names"].tolist()), file["edges"])

  def save(self, path: pathlib.Path) -> None:
    """Writes an npz file."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
      np.savez(file, names=np.array(self.names), edges=self.edges)
