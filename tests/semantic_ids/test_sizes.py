"""The sizes of semantic IDs: a rule of the catalogue's size and of its items with the same text, and what a config says instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.semantic_ids.embed import item_text
from gr2_jax.semantic_ids.sizes import Inputs, choose_sizes, count_inputs


def test_inputs_are_counted():
  assert count_inputs(["a", "b", "a", "", "a", ""]) == Inputs(items=6, distinct=3, largest=3)


@pytest.mark.parametrize(
  ("inputs", "expected"),
  [
    (Inputs(2, 2, 1), (3, 32)),
    (Inputs(682, 682, 1), (3, 32)),  # 1,023 of 1,024 prefixes
    (Inputs(683, 683, 1), (3, 64)),
    (Inputs(12_101, 12_101, 1), (3, 256)),
    (Inputs(50_000, 50_000, 1), (4, 256)),  # 75,000 prefixes, 256² = 65,536
    (Inputs(20_000_000, 20_000_000, 1), (5, 256)),
    (Inputs(600, 300, 16), (3, 32)),
    (Inputs(600, 300, 17), (3, 64)),  # twice as many values as items of one text
    (Inputs(600, 2, 599), (3, 256)),  # export adds a level
  ],
)
def test_the_smallest_sizes_with_room(inputs, expected):
  assert choose_sizes(inputs) == expected


@given(st.integers(1, 10**7), st.integers(1, 10**4), st.none() | st.integers(1, 8), st.none() | st.integers(2, 1024))
def test_a_given_number_stays_and_without_one_prefixes_suffice(distinct, largest, levels, size):
  chosen = choose_sizes(Inputs(distinct * largest, distinct, largest), levels, size)
  assert levels in (None, chosen[0]) and size in (None, chosen[1])
  if levels is None:
    assert chosen[1] ** (chosen[0] - 1) >= 1.5 * distinct and chosen[0] >= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstarts_market_gets_the_sizes_of_its_measured_results(seed):
  catalogue = make_market(MarketConfig(train_slates=1, validation_slates=1, test_slates=1), seed).catalogue
  assert len(catalogue) == 600 and choose_sizes(count_inputs(map(item_text, catalogue.items))) == (3, 32)
