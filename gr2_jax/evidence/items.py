"""What facts read of the items themselves, as arrays by catalogue row; the last entry of each stands for no item (row -1)."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, Item

_WORD = re.compile(r"\w+")
_NAMES: Mapping[str, Callable[[Item], str | None]] = {
  "leaf": lambda item: item.leaf or None,
  "broad": lambda item: item.categories[0] if item.categories else None,
  "brand": lambda item: item.brand,
}


@dataclasses.dataclass(frozen=True, eq=False)
class ItemArrays:
  """`leaf, broad, brand [N + 1]`: index of the leaf category, the broadest category and the brand, -1 for none.

  `log_price [N + 1]`: NaN where unknown. `units [N + 1, D]`: text vectors of length 1, zeros for none. `words`: the words of each title in
  turn, as numbers below W, ascending and each once; where those of an item begin, `word_starts [N + 1]`, and how many they are,
  `word_counts [N + 1]`. `rarity [W]`: log(N / titles that hold the word). `numbers`: of each leaf, broad,
  brand and word.
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
  numbers: Mapping[str, Mapping[str | None, int]]

  @classmethod
  def of(cls, catalogue: Catalogue, vectors: np.ndarray) -> "ItemArrays":
    """The arrays of a catalogue and its text `vectors [N, D]`; raises DataError for a wrong number of vectors."""
    items, units = catalogue.items, unit_vectors(catalogue, vectors)
    names = {kind: sorted({name for item in items if (name := read(item)) is not None}) for kind, read in _NAMES.items()}
    names["word"] = list(dict.fromkeys(word for item in items for word in _words(item)))
    numbers: dict[str, dict[str | None, int]] = {
      kind: {name: number for number, name in enumerate(of_kind)} for kind, of_kind in names.items()
    }
    found = _describe(items, units, numbers, rarity=np.zeros(0))
    return dataclasses.replace(found, rarity=np.log(len(items) / np.bincount(found.words)))

  def of_others(self, items: Sequence[Item], units: np.ndarray) -> "ItemArrays":
    """The arrays of other items and their text vectors `units [m, D]`; names and words that no item here has match nothing."""
    return _describe(items, units, self.numbers, self.rarity)

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


def _words(item: Item) -> list[str]:
  return _WORD.findall(item.title.lower())


def _describe(items: Sequence[Item], units: np.ndarray, numbers: Mapping[str, Mapping[str | None, int]], rarity: np.ndarray) -> ItemArrays:
  codes = {kind: np.asarray([*(numbers[kind].get(read(item), -1) for item in items), -1]) for kind, read in _NAMES.items()}
  number_of = numbers["word"]
  titles = [sorted({number_of[word] for word in _words(item) if word in number_of}) for item in items]
  word_counts = np.asarray([*map(len, titles), 0])
  return ItemArrays(
    **codes,
    log_price=np.asarray([np.nan if item.price is None else np.log(max(item.price, 0.01)) for item in items] + [np.nan]),
    units=np.concatenate([units, np.zeros_like(units[:1])]),
    words=np.asarray([word for title in titles for word in title], np.int64),
    word_starts=np.cumsum(word_counts) - word_counts,
    word_counts=word_counts,
    rarity=rarity,
    numbers=numbers,
  )
