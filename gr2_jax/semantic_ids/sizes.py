"""How many levels of how many codes the semantic IDs of a catalogue have, where the config leaves it open."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import NamedTuple

FEWEST_LEVELS = 3
_CODEBOOK_SIZES = (32, 64, 128, 256)
_PREFIXES_PER_INPUT = 1.5
_VALUES_PER_TWIN = 2


class Inputs(NamedTuple):
  """What a tokenizer can tell `items` apart by: `distinct` inputs, and the `largest` number of items that have the same one."""

  items: int
  distinct: int
  largest: int


def count_inputs(inputs: Iterable[Hashable]) -> Inputs:
  """Counts the inputs of all items: their texts, or their vectors as bytes."""
  counts = Counter(inputs)
  return Inputs(counts.total(), len(counts), max(counts.values(), default=0))


def choose_sizes(inputs: Inputs, levels: int | None = None, codebook_size: int | None = None) -> tuple[int, int]:
  """(levels, codebook size) by the rule below; a number that is given stays.

  Every level is a token of every item in every prompt, every code a row of the embedding: hence three levels of the smallest codebook of
  32, 64, 128 and 256 with which the last level, drawn to be distinct, has room to spare:
  - the levels before it have 1.5 times as many prefixes as there are distinct inputs, so that few meet in one, however uneven the use;
  - it has twice as many values as there are items with the same input, which no learned level divides: the other half stays for items
    near them and for those that come later.
  Where 256 codes leave too few prefixes, levels are added here. Where they are too few for one input's items, export adds a level.
  """
  sizes = _CODEBOOK_SIZES if codebook_size is None else (codebook_size,)
  fewest = FEWEST_LEVELS if levels is None else levels
  prefixes = _PREFIXES_PER_INPUT * inputs.distinct
  for size in sizes:
    if size ** (fewest - 1) >= prefixes and size >= _VALUES_PER_TWIN * inputs.largest:
      return fewest, size
  enough = fewest
  while levels is None and sizes[-1] ** (enough - 1) < prefixes:
    enough += 1
  return enough, sizes[-1]
