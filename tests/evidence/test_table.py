"""Features: values by hand, and nothing from the request or later."""

import numpy as np
import pytest

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import Catalogue, DataError, History, Item, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evidence import requests
from gr2_jax.evidence.facts import BASIC_FACTS, FACTS
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features

CATALOGUE = Catalogue(
  (
    Item("a", "a", brand="X", categories=("Hair", "Shampoo"), price=1.0),
    Item("b", "b", brand="Y", categories=("Hair", "Conditioner"), price=float(np.e)),
    Item("c", "c", brand="X", categories=("Skin", "Toner"), price=float(np.e**2)),
    Item("d", "d"),
  )
)
VECTORS = np.asarray([[1.0, 0], [0, 3], [2, 0], [0, 0]])
ITEMS = ItemArrays.of(CATALOGUE, VECTORS)
LOG = [History("u", ("a", "b", "c"), (10, 20, 30)), History("v", ("a", "b"), (40, 50)), History("w", ("b", "c"), (60, 70))]


def features_of(*slates, log=LOG):
  lm_scores = -np.ones((len(slates), 1)) * np.arange(max(len(slate.candidates) for slate in slates))
  values = slate_features(slates, CATALOGUE, LogCounts.fit(log, CATALOGUE), ITEMS, facts=tuple(FACTS), lm_scores=lm_scores)
  return {name: values[..., i] for i, name in enumerate(FACTS)}


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


def test_times_and_recent_counts_by_hand():
  day = 86_400
  log = [History("u", ("b", "b", "c"), (0, 100 * day, 399 * day)), History("v", ("b",), (390 * day,))]
  slate = Slate("r", ("a",), ("b", "c", "d"), (1, 0, 0), timestamp=400 * day, last_time=397 * day)
  f = {name: column[0] for name, column in features_of(slate, log=log).items()}
  assert f["age"] == pytest.approx(np.log1p([400, 1, 0]) - [0, 0, 1])
  assert f["since_last_taken"] == pytest.approx(np.log1p([10, 1, 0]) - [0, 0, 1])
  assert f["popularity"] == pytest.approx(np.log1p([3, 1, 0])) and f["popularity_365"] == pytest.approx(np.log1p([2, 1, 0]))
  assert f["popularity_90"] == pytest.approx(np.log1p([1, 1, 0])) and f["popularity_30"] == pytest.approx(np.log1p([1, 1, 0]))
  assert f["gap"] == pytest.approx([np.log(4)] * 3) and f["history_length"] == pytest.approx([np.log(2)] * 3)
  untimed = features_of(Slate("r", ("a",), ("b", "c", "d"), (1, 0, 0)), log=log)
  assert (untimed["age"] == -1).all() and (untimed["gap"] == -1).all() and untimed["popularity_30"][0, 0] == pytest.approx(np.log(4))


def test_counts_over_the_whole_history_by_hand():
  slate = Slate("r", ("a", "b"), ("c", "a", "d"), (1, 0, 0), timestamp=55)
  f = {name: column[0] for name, column in features_of(slate).items()}
  # Before 55: histories a b c and a b. With c: a 1 (two steps), b 1; with a: b 2. Taken: a 2, b 2, c 1, of 5.
  assert f["far_count"] == pytest.approx([np.log(3), np.log(3), 0])
  assert f["far_cosine"] == pytest.approx([2 / np.sqrt(2), 1, 0])
  assert f["far_decayed"] == pytest.approx([np.log(2.8), np.log(3), 0])
  assert f["followers_decayed"] == pytest.approx([np.log(2.8), 0, 0])  # nothing is followed by a
  assert f["lift_last"] == pytest.approx([np.log1p(1 * 5 / (2 * 1)), 0, 0])
  assert f["leaf_next_count_second"] == pytest.approx([0, 0, 0])  # nothing of a's leaf is followed by a toner or another shampoo
  assert f["brand_count"].tolist() == [1, 1, 0]
  assert f["text_max"] == pytest.approx([1, 1, 0]) and f["text_decayed"] == pytest.approx([0.8 / 1.8, 0.8 / 1.8, 0])


def test_words_of_titles_shared_with_the_history():
  titles = ("Rose toner", "rose & mint soap", "mint  balm", "Balm")
  catalogue = Catalogue(tuple(Item(name, title) for name, title in zip("abcd", titles, strict=True)))
  slates = [Slate("r", ("a", "c"), ("b", "d"), (1, 0)), Slate("s", ("d",), ("a", "c"), (1, 0))]
  names = ("words_shared", "rare_words_shared")
  values = slate_features(slates, catalogue, LogCounts.fit([], catalogue), ItemArrays.of(catalogue, VECTORS), facts=names)
  assert values[..., 0].tolist() == [[2, 1], [0, 1]]  # rose and mint; balm
  np.testing.assert_allclose(values[..., 1], np.log(2) * values[..., 0], rtol=1e-6)  # two of four titles hold each


def test_a_request_alone_gets_the_row_of_the_table():
  market = make_market(MarketConfig(num_items=60, train_slates=40, validation_slates=2, test_slates=2, slate_size=5), seed=1)
  slates = market.slates["train"]
  items = ItemArrays.of(market.catalogue, np.random.default_rng(0).normal(size=(60, 8)))
  read = (market.catalogue, LogCounts.fit(market.histories, market.catalogue), items)
  lm_scores = np.random.default_rng(1).normal(size=(len(slates), 5))
  table = slate_features(slates, *read, facts=tuple(FACTS), lm_scores=lm_scores)
  assert (table.std(axis=(0, 1)) > 0).all()
  for i, slate in enumerate(slates):
    alone = slate_features([slate], *read, facts=tuple(FACTS), lm_scores=lm_scores[i : i + 1])
    np.testing.assert_array_equal(alone[0], table[i])


def test_slates_are_worked_on_in_parts_of_any_size(monkeypatch):
  slates = [
    Slate("r", ("c", "a"), ("b", "d", "c"), (1, 0, 0), timestamp=55),
    Slate("s", (), ("a", "b"), (1, 0)),
    Slate("t", ("b",), ("a",), (1,)),
  ]
  whole = features_of(*slates)
  monkeypatch.setattr(requests, "_AT_ONCE", 1)
  for name, values in features_of(*slates).items():
    np.testing.assert_array_equal(values, whole[name], err_msg=name)


def test_a_catalogue_without_a_word_shares_none():
  catalogue = Catalogue(tuple(Item(name, "") for name in "abcd"))
  items, slate = ItemArrays.of(catalogue, VECTORS), Slate("r", ("a",), ("b", "c"), (1, 0))
  names = ("words_shared", "rare_words_shared")
  assert not slate_features([slate], catalogue, LogCounts.fit([], catalogue), items, facts=names).any()


def test_a_request_without_a_history_has_facts_of_the_candidates_alone():
  slates = [Slate("r", (), ("b", "d"), (1, 0)), Slate("s", ("a",), ("b",), (1,))]
  counts = LogCounts.fit(LOG, CATALOGUE)
  names = tuple(name for name in FACTS if name != "lm_score")
  together = slate_features(slates, CATALOGUE, counts, ITEMS, facts=names)
  alone = slate_features(slates[:1], CATALOGUE, counts, ITEMS, facts=names)
  np.testing.assert_array_equal(alone[0], together[0])
  assert np.isfinite(alone).all() and alone[0, 0, names.index("popularity")] == pytest.approx(np.log(4))


def test_the_mid_trained_model_s_score_is_relative_to_the_slate():
  slates = [Slate("r", ("a",), ("b", "c"), (1, 0)), Slate("s", ("a",), ("b",), (1,))]
  read = (slates, CATALOGUE, LogCounts.fit(LOG, CATALOGUE), ITEMS)
  table = slate_features(*read, facts=("lm_score",), lm_scores=np.asarray([[-1.0, -3.0], [-2.0, np.nan]]))
  assert table[..., 0].tolist() == [[1, -1], [0, 0]]
  with pytest.raises(ValueError, match="lm_score needs the log-probabilities of the mid-trained model"):
    slate_features(*read, facts=("lm_score",))


def test_events_at_or_after_the_request_change_nothing():
  slate = Slate("r", ("b",), ("c", "a"), (1, 0), timestamp=30)
  later = [*LOG, History("x", ("b", "c"), (29, 30)), History("y", ("b", "c", "a"), (31, 32, 33))]
  before, after = features_of(slate), features_of(slate, log=later)
  changed = {name for name in FACTS if not np.array_equal(before[name], after[name])}
  # User x's b at 29 is past, but b is no candidate and its next item comes at the request's own second: only how often b was taken differs.
  assert changed == {"far_cosine"}
  earlier = features_of(slate, log=[*LOG, History("x", ("b", "c"), (28, 29))])
  assert earlier["next_count_last"][0, 0] == pytest.approx(np.log(2)) and before["next_count_last"][0, 0] == 0


def test_without_a_timestamp_all_events_count():
  slate = Slate("r", ("b",), ("c", "a"), (1, 0))
  assert features_of(slate)["next_count_last"][0, 0] == pytest.approx(np.log(3))
  mixed = features_of(slate, Slate("r", ("b",), ("c", "a"), (1, 0), timestamp=31))["next_count_last"]
  assert mixed[:, 0] == pytest.approx([np.log(3), np.log(2)])


def test_shorter_slates_are_padded_and_labelled_so():
  slates = [Slate("r", ("b",), ("c", "a", "d"), (0, 1, 0)), Slate("s", ("a", "b", "c"), ("d", "b"), (2, 0))]
  values = slate_features(slates, CATALOGUE, LogCounts.fit(LOG, CATALOGUE), ITEMS)
  assert values.shape == (2, 3, len(BASIC_FACTS)) and values.dtype == np.float32 and np.isfinite(values).all()
  assert (values[1, 2] == 0).all()
  assert slate_labels(slates).tolist() == [[0, 1, 0], [2, 0, -1]]
  # What stands in a slate does not depend on its neighbours' lengths.
  alone = slate_features(slates[:1], CATALOGUE, LogCounts.fit(LOG, CATALOGUE), ITEMS)
  np.testing.assert_array_equal(alone[0], values[0])


def test_vectors_of_another_catalogue_are_refused():
  with pytest.raises(DataError, match="vectors: 3 rows for 4 items"):
    ItemArrays.of(CATALOGUE, VECTORS[:3])
