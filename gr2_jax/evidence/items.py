"""What facts read of the items themselves, as arrays by catalogue row; the last entry of each stands for no item (row -1)."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError
from gr2_jax.evidence.counts import index_names

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemArrays:
  """`leaf, broad, brand [N + 1]`: index of the leaf category, the broadest category and the brand, -1 for none.

  `log_price [N + 1]`: NaN where unknown. `units [N + 1, D]`: text vectors of length 1, zeros for none. `words`: the words of each title in
  turn, as numbers below W, ascending and each once; where those of an item begin, `word_starts [N + 1]`, and how many they are,
  `word_counts [N + 1]`. `rarity [W]`: log(N / titles that hold the word).
  """

  leaf: np.ndarray
  broad: np.ndarray
  brand: np.ndarray
  log_price: np.ndarray
  units: np.ndarray
  words: np.ndarray
  word_starts: np.ndarray
  word_counts: np.ndarray
  rarity: np.ndarray

  @classmethod
  def of(cls, catalogue: Catalogue, vectors: np.ndarray) -> "ItemArrays":
    """The arrays of a catalogue and its text `vectors [N, D]`; raises DataError for a wrong number of vectors."""
    items, units = catalogue.items, unit_vectors(catalogue, vectors)
    titles = [*_number_words([item.title for item in items]), []]
    word_counts = np.asarray([len(title) for title in titles])
    words = np.asarray([word for title in titles for word in title], np.int64)
    return cls(
      leaf=_codes([item.leaf or None for item in items]),
      broad=_codes([item.categories[0] if item.categories else None for item in items]),
      brand=_codes([item.brand for item in items]),
      log_price=np.asarray([np.nan if item.price is None else np.log(max(item.price, 0.01)) for item in items] + [np.nan]),
      units=np.concatenate([units, np.zeros_like(units[:1])]),
      words=words,
      word_starts=np.cumsum(word_counts) - word_counts,
      word_counts=word_counts,
      rarity=np.log(len(items) / np.bincount(words)),
    )

  def words_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `rows [m]`, word) of each word of the titles of items, in turn."""
    counts = self.word_counts[rows]
    first = (self.word_starts[rows] - counts.cumsum() + counts).repeat(counts)  # less the words before those of the item
    return np.arange(len(rows)).repeat(counts), self.words[first + np.arange(len(first))]


def unit_vectors(catalogue: Catalogue, vectors: np.ndarray) -> np.ndarray:
  """A catalogue's text `vectors [N, D]` at length 1, float32, zeros for none; raises DataError for a wrong number of them."""
  if len(vectors) != len(catalogue):
    raise DataError(f"vectors: {len(vectors)} rows for {len(catalogue)} items; embed the same catalogue")
  vectors = np.asarray(vectors, np.float32)
  return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _codes(names: Sequence[str | None]) -> np.ndarray:
  return np.append(index_names(names)[1], -1)


def _number_words(titles: Sequence[str]) -> list[list[int]]:
  """The words of each title as numbers in the order of their first use, ascending and each once."""
  numbers: dict[str, int] = {}
  return [sorted({numbers.setdefault(word, len(numbers)) for word in _WORD.findall(title.lower())}) for title in titles]
