"""Every check of the records, by its message."""

import dataclasses
import math

import pytest

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate, check_history, check_item, check_slate

CATALOGUE = Catalogue(tuple(Item(name, name) for name in "abc"))
SLATE = Slate(user="u", history=("a",), candidates=("b", "c"), labels=(0, 1))


def test_good_records_pass():
  check_item(Item("a", "", price=0.0))
  check_history(History("u", ("a", "b", "a"), (1, 1, 2)), CATALOGUE)
  check_history(History("u", ("a",)), CATALOGUE)
  check_history(History("u", ("a", "b"), (0, 10**11 - 1)))
  check_slate(dataclasses.replace(SLATE, upstream_scores=(2.0, -1.0), propensities=(1.0, 0.5), weight=0.1), CATALOGUE)
  check_slate(dataclasses.replace(SLATE, upstream_scores=(2.0, 2.0), labels=(2, 1), timestamp=0))
  assert dataclasses.replace(SLATE, candidates=("b", "c", "a"), labels=(2, 0, 1)).targets == {"a", "b"}


def test_catalogue_rows_and_unknown_items():
  assert CATALOGUE.to_rows(["c", "a"]) == [2, 0]
  assert len(CATALOGUE) == 3
  with pytest.raises(DataError, match="unknown item 'z'"):
    CATALOGUE.to_rows(["a", "z"])
  with pytest.raises(DataError, match="'a' occurs twice"):
    Catalogue((Item("a", "x"), Item("b", "y"), Item("a", "z")))


@pytest.mark.parametrize(
  ("item", "message"), [(Item("", "t"), "empty id"), (Item("a", "", price=-1.0), "price"), (Item("a", "", price=math.nan), "price")]
)
def test_bad_items(item, message):
  with pytest.raises(DataError, match=message):
    check_item(item)


@pytest.mark.parametrize(
  ("history", "message"),
  [
    (History("", ("a",)), "user: empty"),
    (History("u", ()), "no interactions"),
    (History("u", ("a", "b"), (1,)), "timestamps: 1 for 2 items"),
    (History("u", ("a", "b"), (2, 1)), "they decrease"),
    (History("u", ("a", "b"), (-1, 1)), "timestamps: -1 .* Unix seconds"),
    (History("u", ("a", "b"), (1, 1_700_000_000_000)), "timestamps: 1700000000000 .* divide milliseconds"),
    (History("u", ("a", "z")), "unknown item 'z'"),
  ],
)
def test_bad_histories(history, message):
  with pytest.raises(DataError, match=message):
    check_history(history, CATALOGUE)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"history": ()}, "history: user 'u' has none"),
    ({"candidates": ("b",), "labels": (1,)}, "a slate of 1"),
    ({"candidates": ("b", "b")}, "'b' is repeated"),
    ({"labels": (1,)}, "labels: 1 for 2"),
    *(({"labels": (label, 1)}, "labels: .*use 0 none, 1 click, 2 conversion") for label in (-1, math.nan, 0.5, 3, 31, 128, 3 * 10**9)),
    ({"timestamp": -1}, "timestamp: -1"),
    ({"timestamp": 10**11}, "timestamp: 100000000000 .* Unix seconds"),
    ({"upstream_scores": (0.2, 0.9)}, "upstream_scores: they rise"),
    ({"labels": (0, 0)}, "target is missing"),
    ({"upstream_scores": (1.0,)}, "upstream_scores: 1 for 2"),
    ({"upstream_scores": (1.0, math.inf)}, "upstream_scores"),
    ({"propensities": (0.0, 1.0)}, "propensities"),
    ({"propensities": (0.5, 1.5)}, "propensities"),
    ({"weight": 0.0}, "weight"),
    ({"weight": math.nan}, "weight"),
    ({"history": ("z",)}, "unknown item 'z'"),
    ({"candidates": ("b", "z")}, "unknown item 'z'"),
  ],
)
def test_bad_slates(change, message):
  with pytest.raises(DataError, match=message):
    check_slate(dataclasses.replace(SLATE, **change), CATALOGUE)
