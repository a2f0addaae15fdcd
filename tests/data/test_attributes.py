"""Brands, prices and small brands of candidates, by hand."""

import numpy as np

from gr2_jax.data.attributes import find_small_brands, slate_attributes
from gr2_jax.data.schema import Catalogue, History, Item, Slate

CATALOGUE = Catalogue(
  (
    Item("a", "a", "Velora", price=1.0),
    Item("b", "b", "Aquine", price=float(np.e**2)),
    Item("c", "c", "Velora"),
    Item("d", "d", None, price=float(np.e)),
    Item("e", "e", None, price=0.0),
  )
)


def slate(*candidates):
  return Slate("u", ("a",), candidates, (1,) + (0,) * (len(candidates) - 1))


def test_brands_are_alike_where_they_are_and_unknown_ones_and_the_padding_are_none():
  of = slate_attributes([slate("a", "b", "c", "d"), slate("d", "b")], CATALOGUE, frozenset({"Aquine"}))
  brands = of.brands.tolist()
  assert brands[0][0] == brands[0][2] != brands[0][1] and brands[0][3] == -1
  assert brands[1][0] == -1 and brands[1][1] == brands[0][1] and brands[1][2:] == [-1, -1]
  assert of.small.tolist() == [[False, True, False, False], [False, True, False, False]]


def test_prices_are_logarithms_over_the_mean_of_those_that_are_known():
  of = slate_attributes([slate("a", "b", "c", "d"), slate("d", "e")], CATALOGUE, frozenset())
  np.testing.assert_allclose(of.prices, [[-1, 1, 0, 0], [0, 0, 0, 0]], atol=1e-6)
  assert of.prices.dtype == np.float32


def test_the_small_brands_are_those_that_the_log_holds_least_of():
  log = [History("u", ("a", "c", "b")), History("v", ("b", "b", "d"))]
  assert find_small_brands(CATALOGUE, log, 0.5) == {"Velora"}  # two purchases against three; items without a brand are of none
  assert find_small_brands(CATALOGUE, log[:1], 0.5) == {"Aquine"}
  assert find_small_brands(CATALOGUE, (), 0.5) == {"Aquine"}, "as few of each: by name"
  assert find_small_brands(CATALOGUE, log, 0.0) == frozenset() and find_small_brands(CATALOGUE, log, 1.0) == {"Aquine", "Velora"}
