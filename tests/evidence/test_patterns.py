"""Patterns and the features made of them: values by hand, nothing from the request or later."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate
from gr2_jax.evidence.patterns import PATTERN_FEATURES, fit_patterns, mine_priming, pattern_features

DAY = 86_400
LEAVES = ("Shampoo", "Conditioner", "Toner", "Cleanser")
ITEMS = (
  *(Item(f"i{n}", f"Velora {LEAVES[n % 4]} {n}", ("Velora", "Aquine")[n // 4 % 2], ("Care", LEAVES[n % 4])) for n in range(12)),
  Item("bare", ""),
)
CATALOGUE = Catalogue(ITEMS)
# Shampoo -> Conditioner on days 1 and 2, Shampoo -> Toner on day 2 and again on day 9.
HISTORIES = (
  History("a", ("i0", "i1"), (0, DAY)),
  History("b", ("i4", "i5"), (0, 2 * DAY)),
  History("c", ("i0", "i2"), (0, 2 * DAY)),
  History("d", ("i0", "i6"), (0, 9 * DAY)),
)
SLATE = Slate("u", ("i3", "i0"), ("i7", "i5", "i2", "bare"), (0, 0, 0, 1), timestamp=5 * DAY)


def test_names_of_categories_and_brands():
  patterns = fit_patterns(HISTORIES, CATALOGUE)
  assert patterns.categories == ("", "Cleanser", "Conditioner", "Shampoo", "Toner") and patterns.brands == ("", "Aquine", "Velora")
  assert patterns.category_of.tolist() == [3, 2, 4, 1] * 3 + [0]
  assert patterns.brand_of.tolist() == [2] * 4 + [1] * 4 + [2] * 4 + [0]
  assert len(PATTERN_FEATURES) == pattern_features(SLATE, patterns, CATALOGUE).shape[1]


def test_features_by_hand():
  features = pattern_features(SLATE, fit_patterns(HISTORIES, CATALOGUE), CATALOGUE)
  # Latest first: i0 (Shampoo, weight 1), i3 (Cleanser, weight 1/2; nothing followed it). Before day 5 Shampoo was followed by Conditioner
  # twice and Toner once: in units of the most frequent 1 and 1/2, times 1 / (1 + 1/2).
  np.testing.assert_allclose(features[:, 0], [0, 2 / 3, 1 / 3, 0])
  # Taste: i3 is one step back, so Cleanser has .9 / 1.9 (candidate i7); no other candidate's category is in the history.
  np.testing.assert_allclose(features[:, 1], [0.9 / 1.9, 0, 0, 0])
  # Both history items are Velora, as is i2; i7 and i5 are Aquine, "bare" has no brand.
  np.testing.assert_allclose(features[:, 2], [0, 0, 1, 0])
  # i0 -> i2 happened once before day 5: 1 of 3.
  np.testing.assert_allclose(features[:, 3], [0, 0, 1 / 3, 0])
  np.testing.assert_allclose(features[:, 4], [1, 2 / 3, 1 / 3, 0])


def test_what_comes_after_the_request_changes_nothing():
  later = History("e", ("i0", "bare", "i5", "i3", "i7"), tuple(DAY * day for day in (5, 6, 7, 8, 9)))
  other = fit_patterns((*HISTORIES, later), CATALOGUE)
  expected = pattern_features(SLATE, fit_patterns(HISTORIES, CATALOGUE), CATALOGUE)
  np.testing.assert_array_equal(pattern_features(SLATE, other, CATALOGUE), expected)


def test_priming_counts_successions_of_different_categories():
  # Shampoo -> Conditioner and Shampoo -> Toner twice each; a repeated category and an item without one say nothing.
  more = (History("e", ("i3", "i0")), History("f", ("i3", "i7", "i0", "bare", "i1", "i0")))
  listed = "Cleanser then Shampoo, Shampoo then Conditioner, Shampoo then Toner, Conditioner then Shampoo"
  assert mine_priming((*HISTORIES, *more), CATALOGUE) == listed
  assert mine_priming(HISTORIES, CATALOGUE, top=1) == "Shampoo then Conditioner"
  with pytest.raises(DataError, match="unknown item 'z'"):
    mine_priming((History("q", ("z",)),), CATALOGUE)
