"""What items of slates are besides relevant: brands, prices, and brands that are seldom bought, as arrays that a device can read."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.data.slates import pad_rows


class SlateAttributes(NamedTuple):
  """Of the candidates of n slates, `[n, K]` each.

  `brands`: int32, alike where the brand is; -1 where it is unknown, and at padding. `prices`: float32, the logarithm of the price minus the
  slate's mean; 0 where it is unknown. `small`: whether the brand is a small one.
  """

  brands: np.ndarray
  prices: np.ndarray
  small: np.ndarray


def slate_attributes(slates: Sequence[Slate], catalogue: Catalogue, small: frozenset[str]) -> SlateAttributes:
  """Those of the slates' candidates; `small`: the names of small brands."""
  rows = pad_rows([catalogue.to_rows(slate.candidates) for slate in slates]).astype(np.int64)
  names = sorted({item.brand for item in catalogue.items if item.brand})
  number = {name: place for place, name in enumerate(names)}
  brand_of = np.array([*(number[item.brand] if item.brand else -1 for item in catalogue.items), -1], np.int32)  # -1 reads the last
  price_of = np.array([*(np.log(item.price) if item.price else np.nan for item in catalogue.items), np.nan])
  is_small = np.array([*(item.brand in small for item in catalogue.items), False])
  known = ~np.isnan(price_of[rows])
  prices = np.where(known, price_of[rows], 0)
  mean = prices.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
  return SlateAttributes(brand_of[rows], np.where(known, prices - mean, 0).astype(np.float32), is_small[rows])


def find_small_brands(catalogue: Catalogue, log: Sequence[History], share: float) -> frozenset[str]:
  """The `share` of the catalogue's brands, rounded, of which the log has the fewest purchases; of those that have as many, by name."""
  bought = Counter(item for history in log for item in history.items)
  of_brand: Counter[str] = Counter()
  for item in catalogue.items:
    if item.brand:
      of_brand[item.brand] += bought[item.id]
  ordered = sorted(of_brand, key=lambda name: (of_brand[name], name))
  return frozenset(ordered[: round(share * len(ordered))])
