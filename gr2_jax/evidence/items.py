"""What facts read of the items themselves, as arrays by catalogue row; the last entry of each stands for no item (row -1)."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gr2_jax.data.schema import Catalogue, DataError
from gr2_jax.evidence.counts import index_names

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemArrays:
  """`leaf, broad, brand [N + 1]`: index of the leaf category, the broadest category and the brand, -1 for none.

  `log_price [N + 1]`: NaN where unknown. `units [N + 1, D]`: text vectors of length 1, zeros for none. `words [N + 1, W]`: 1 for each
  word of the title, sparse; `rarity [W]`: log(N / titles that hold the word).
  """

  leaf: np.ndarray
  broad: np.ndarray
  brand: np.ndarray
  log_price: np.ndarray
  units: np.ndarray
  words: sparse.csr_matrix
  rarity: np.ndarray

  @classmethod
  def of(cls, catalogue: Catalogue, vectors: np.ndarray) -> "ItemArrays":
    """The arrays of a catalogue and its text `vectors [N, D]`; raises DataError for a wrong number of vectors."""
    items, units = catalogue.items, unit_vectors(catalogue, vectors)
    words = _title_words([item.title for item in items])
    titles = np.maximum(np.asarray(words.sum(axis=0)).ravel(), 1)
    return cls(
      leaf=_codes([item.leaf or None for item in items]),
      broad=_codes([item.categories[0] if item.categories else None for item in items]),
      brand=_codes([item.brand for item in items]),
      log_price=np.asarray([np.nan if item.price is None else np.log(max(item.price, 0.01)) for item in items] + [np.nan]),
      units=np.concatenate([units, np.zeros_like(units[:1])]),
      words=words,
      rarity=np.log(len(items) / titles),
    )


def unit_vectors(catalogue: Catalogue, vectors: np.ndarray) -> np.ndarray:
  """A catalogue's text `vectors [N, D]` at length 1, float32, zeros for none; raises DataError for a wrong number of them."""
  if len(vectors) != len(catalogue):
    raise DataError(f"vectors: {len(vectors)} rows for {len(catalogue)} items; embed the same catalogue")
  vectors = np.asarray(vectors, np.float32)
  return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _codes(names: Sequence[str | None]) -> np.ndarray:
  return np.append(index_names(names)[1], -1)


def _title_words(titles: Sequence[str]) -> sparse.csr_matrix:
  """1 where a title holds a word, a column a word, with an empty last row."""
  index: dict[str, int] = {}
  columns = [sorted({index.setdefault(word, len(index)) for word in _WORD.findall(title.lower())}) for title in titles]
  starts = np.cumsum([0, *(len(of_title) for of_title in columns), 0])
  flat = np.asarray([word for of_title in columns for word in of_title], np.int64)
  return sparse.csr_matrix((np.ones(len(flat)), flat, starts), shape=(len(titles) + 1, max(len(index), 1)))
