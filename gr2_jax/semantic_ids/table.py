"""The semantic IDs of a catalogue, both ways: row -> codes and codes -> rows."""

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gr2_jax.data.schema import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIDTable:
  """`codes [N, L]` int32 in 0..codebook_size-1, one row for each catalogue row. Raises DataError for codes out of range."""

  codes: np.ndarray
  codebook_size: int

  def __post_init__(self) -> None:
    codes = np.array(self.codes, dtype=np.int32)  # a copy: nobody else can change a table
    check_codes(codes, self.codebook_size)
    codes.flags.writeable = False
    object.__setattr__(self, "codes", codes)

  def __len__(self) -> int:
    return len(self.codes)

  @property
  def num_levels(self) -> int:
    return self.codes.shape[1]

  @functools.cached_property
  def _rows(self) -> dict[tuple[int, ...], list[int]]:
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, codes in enumerate(self.codes.tolist()):
      rows.setdefault(tuple(codes), []).append(row)
    return rows

  def items_of(self, codes: Sequence[int]) -> list[int]:
    """Catalogue rows that carry exactly these L codes: none, one, or several where IDs collide."""
    return list(self._rows.get(tuple(int(code) for code in codes), ()))

  def uniqueness(self) -> dict[str, float]:
    """Both definitions of `uniqueness` for the whole IDs."""
    return uniqueness(self.codes)

  def save(self, path: str | Path) -> None:
    """Writes the table as one `.npz` file."""
    with open(path, "wb") as file:
      np.savez_compressed(file, codes=self.codes, codebook_size=np.int32(self.codebook_size))

  @classmethod
  def load(cls, path: str | Path) -> "SemanticIDTable":
    """Reads what `save` wrote; raises DataError for any other file."""
    try:
      with np.load(path, allow_pickle=False) as arrays:
        return cls(codes=arrays["codes"], codebook_size=int(arrays["codebook_size"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
      raise DataError(f"{path}: is no table of semantic IDs ({error}); run the tokenize stage again") from None


def check_codes(codes: np.ndarray, codebook_size: int) -> None:
  """Raises DataError unless codes are `[N, L]` with at least one row and level, all in 0..codebook_size-1."""
  if codes.ndim != 2 or 0 in codes.shape:
    raise DataError(f"codes: shape {codes.shape}; semantic IDs are [items, levels]")
  if codes.min() < 0 or codes.max() >= codebook_size:
    raise DataError(f"codes: values {codes.min()}..{codes.max()} do not fit a codebook of {codebook_size}")


def prefix_groups(codes: np.ndarray) -> np.ndarray:
  """Numbers the distinct prefixes of every length: `[N, L]` codes -> `[N, L + 1]` int64 group of each item's first 0..L codes.

  Groups of one length count from 0 in lexicographic order of the prefixes, so column 0 is all 0.
  """
  codes = codes.astype(np.int64)
  groups = np.zeros((codes.shape[0], codes.shape[1] + 1), np.int64)
  base = int(codes.max(initial=0)) + 1
  for level in range(codes.shape[1]):
    # Extending group numbers instead of packing whole prefixes keeps the keys below N * base at any depth.
    keys = groups[:, level] * base + codes[:, level]
    groups[:, level + 1] = np.unique(keys, return_inverse=True)[1].reshape(-1)
  return groups


def uniqueness(codes: np.ndarray) -> dict[str, float]:
  """Both usual definitions over codes `[N, L]` (GR2 2.3): they differ, and papers rarely say which they quote.

  `distinct_share`: distinct IDs / items. `own_share`: share of items whose ID no other item has; never the larger one.
  """
  sizes = np.bincount(prefix_groups(codes)[:, -1])
  return {"distinct_share": len(sizes) / len(codes), "own_share": int((sizes == 1).sum()) / len(codes)}
