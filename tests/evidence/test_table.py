"""Features: values by hand, and nothing from the request or later."""

import numpy as np
import pytest

from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evidence.table import FEATURE_NAMES, LogCounts, slate_features

CATALOGUE = Catalogue(
  (
    Item("a", "a", brand="X", categories=("Hair", "Shampoo"), price=1.0),
    Item("b", "b", brand="Y", categories=("Hair", "Conditioner"), price=float(np.e)),
    Item("c", "c", brand="X", categories=("Skin", "Toner"), price=float(np.e**2)),
    Item("d", "d"),
  )
)
VECTORS = np.asarray([[1.0, 0], [0, 3], [2, 0], [0, 0]])
LOG = [History("u", ("a", "b", "c"), (10, 20, 30)), History("v", ("a", "b"), (40, 50)), History("w", ("b", "c"), (60, 70))]


def features_of(*slates, log=LOG):
  values = slate_features(slates, CATALOGUE, LogCounts.fit(log, CATALOGUE), VECTORS)
  return {name: values[..., i] for i, name in enumerate(FEATURE_NAMES)}


def test_values_by_hand():
  slate = Slate("r", ("c", "a"), ("b", "d", "c"), (1, 0, 0), upstream_scores=(0.9, 0.5, 0.1), timestamp=55)
  f = {name: column[0].tolist() for name, column in features_of(slate).items()}
  # Before 55: a -> b at 20 and 50, b -> c at 30. Windowed pairs besides: {a, c} at 30.
  assert f["next_count_last"] == pytest.approx([np.log(3), 0, 0])
  assert f["next_share_last"] == pytest.approx([1, 0, 0])
  assert f["next_count_second"] == pytest.approx([0, 0, 0])
  # With c: b 1, a 1; with a: b 2, c 1 -> candidates b: 1 + 2, c: 1 (from a).
  assert f["cooccurrence_sum"] == pytest.approx([np.log(4), 0, np.log(2)])
  assert f["cooccurrence_max"] == pytest.approx([np.log(3), 0, np.log(2)])
  assert f["leaf_next_count"] == pytest.approx([np.log(3), 0, 0])
  assert f["popularity"] == pytest.approx([np.log(3), 0, np.log(2)])  # b at 20 and 50, c at 30
  assert f["leaf_share"] == [0, 0, 0.5] and f["broad_share"] == [0.5, 0, 0.5]
  assert f["leaf_is_last"] == [0, 0, 0] and f["broad_is_last"] == [1, 0, 0]
  assert f["brand_share"] == [0, 0, 1] and f["brand_is_last"] == [0, 0, 1]
  assert f["text_last"] == pytest.approx([0, 0, 1]) and f["text_history"] == pytest.approx([0, 0, 1])
  # Mean log price of c (2) and a (0) is 1: b 1 - 1, d unknown, c 2 - 1.
  assert f["price_difference"] == pytest.approx([0, 0, 1], abs=1e-6)
  assert f["upstream_rank"] == [0, 1, 2] and f["upstream_score"] == pytest.approx([0.9, 0.5, 0.1])


def test_events_at_or_after_the_request_change_nothing():
  slate = Slate("r", ("b",), ("c", "a"), (1, 0), timestamp=30)
  later = [*LOG, History("x", ("b", "c"), (29, 30)), History("y", ("b", "c", "a"), (31, 32, 33))]
  before, after = features_of(slate), features_of(slate, log=later)
  changed = {name for name in FEATURE_NAMES if not np.array_equal(before[name], after[name])}
  assert changed == set()  # user x's b at 29 is past, but b is no candidate and its next item comes at the request's own second
  earlier = features_of(slate, log=[*LOG, History("x", ("b", "c"), (28, 29))])
  assert earlier["next_count_last"][0, 0] == pytest.approx(np.log(2)) and before["next_count_last"][0, 0] == 0


def test_without_a_timestamp_all_events_count():
  slate = Slate("r", ("b",), ("c", "a"), (1, 0))
  assert features_of(slate)["next_count_last"][0, 0] == pytest.approx(np.log(3))
  mixed = features_of(slate, Slate("r", ("b",), ("c", "a"), (1, 0), timestamp=31))["next_count_last"]
  assert mixed[:, 0] == pytest.approx([np.log(3), np.log(2)])


def test_shorter_slates_are_padded_and_labelled_so():
  slates = [Slate("r", ("b",), ("c", "a", "d"), (0, 1, 0)), Slate("s", ("a", "b", "c"), ("d", "b"), (2, 0))]
  values = slate_features(slates, CATALOGUE, LogCounts.fit(LOG, CATALOGUE), VECTORS)
  assert values.shape == (2, 3, len(FEATURE_NAMES)) and values.dtype == np.float32 and np.isfinite(values).all()
  assert (values[1, 2] == 0).all()
  assert slate_labels(slates).tolist() == [[0, 1, 0], [2, 0, -1]]
  # What stands in a slate does not depend on its neighbours' lengths.
  alone = slate_features(slates[:1], CATALOGUE, LogCounts.fit(LOG, CATALOGUE), VECTORS)
  np.testing.assert_array_equal(alone[0], values[0])


def test_vectors_of_another_catalogue_are_refused():
  with pytest.raises(DataError, match="vectors: 3 rows for 4 items"):
    slate_features([Slate("r", ("b",), ("c", "a"), (1, 0))], CATALOGUE, LogCounts.fit(LOG, CATALOGUE), VECTORS[:3])
