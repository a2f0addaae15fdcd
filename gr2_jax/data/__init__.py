"""The records that every stage speaks, files of them, and a synthetic market with a known truth.

>>> from gr2_jax.data import MarketConfig, make_market
>>> market = make_market(MarketConfig(num_items=120, train_slates=60, validation_slates=20, test_slates=20), seed=0)
>>> slate = market.slates["train"][0]
>>> len(slate.candidates), sum(label > 0 for label in slate.labels) > 0
(10, True)
>>> market.catalogue.items[market.catalogue.rows[slate.candidates[0]]].leaf != ""
True
"""

from gr2_jax.data.jsonl import read_interactions, read_items, read_slates
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate

__all__ = [
  "Catalogue",
  "DataError",
  "History",
  "Item",
  "MarketConfig",
  "Slate",
  "make_market",
  "read_interactions",
  "read_items",
  "read_slates",
]
