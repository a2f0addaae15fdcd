"""Classical orders by hand, and the check of the evaluation itself: the oracle is on top, shuffled labels give no lift."""

import numpy as np
import pytest

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import SPLITS, Catalogue, DataError, History, Item, Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation import baselines
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features
from gr2_jax.teachers.tree import fit_lambdamart, lambdamart_scores


def recall_at_1(order, labels):
  return float((np.take_along_axis(labels, order[:, :1], axis=1) > 0).mean())


def ndcg_at_3(order, labels):
  """One relevant candidate: 1 / log2(1 + place) if it stands among the first three."""
  return float((np.take_along_axis(labels, order[:, :3], axis=1) / np.log2([2, 3, 4])).sum(axis=1).mean())


CATALOGUE = Catalogue(tuple(Item(name, name) for name in "abcd"))
LOG = [History("u", ("a", "b", "c"), (1, 2, 3)), History("v", ("a", "c", "b"), (4, 5, 6)), History("w", ("d", "c"), (7, 8))]
SLATES = [Slate("r", ("a",), ("b", "c", "d"), (0, 1, 0), timestamp=7), Slate("s", ("d",), ("b", "c"), (1, 0), timestamp=9)]


def test_simple_orders_by_hand():
  labels = slate_labels(SLATES)
  # Before 7: b 2, c 2, d 0, the tie in upstream order. Before 9: b 2, c 3. Index 2 of the second slate is padding.
  popularity = baselines.popularity_ranking(SLATES, CATALOGUE, ItemCounts.fit(LOG, CATALOGUE))
  assert popularity.tolist() == [[0, 1, 2], [1, 0, 2]]
  # a -> b 1, a -> c 1: tie. d -> c at 8.
  transitions = baselines.last_transition_ranking(SLATES, CATALOGUE, TransitionCounts.fit(LOG, CATALOGUE))
  assert transitions.tolist() == [[0, 1, 2], [1, 0, 2]]
  assert baselines.upstream_ranking(labels).tolist() == [[0, 1, 2], [0, 1, 2]]
  assert baselines.ideal_ranking(labels).tolist() == [[1, 0, 2], [0, 1, 2]]
  assert baselines.utility_ranking(np.asarray([[1.0, 3, 2], [-5, -4, 0]]), labels).tolist() == [[1, 2, 0], [1, 0, 2]]


@pytest.mark.parametrize("scores", [[[np.nan, 1.0, 2.0]], [[1.0, np.nan, 2.0]]])
def test_a_ranker_whose_scores_are_nan_is_named(scores):
  labels = np.asarray([[0, 1, -1]])
  with pytest.raises(DataError, match=r"^lambdamart: 1 of its 2 scores"):
    baselines.rank_by_scores(np.asarray(scores), labels, "lambdamart")
  with pytest.raises(DataError, match=r"^oracle: "):
    baselines.utility_ranking(np.asarray(scores), labels)
  assert baselines.rank_by_scores(np.asarray([[1.0, 2.0, np.nan]]), labels, "lambdamart").tolist() == [[1, 0, 2]]  # padding has no score


def test_random_order_is_a_seeded_permutation_with_padding_last():
  labels = np.tile(np.asarray([0, 1, 0, -1]), (300, 1))
  first = baselines.random_ranking(labels, 0)
  assert (np.sort(first, axis=1) == np.arange(4)).all() and (first[:, 3] == 3).all()
  np.testing.assert_array_equal(first, baselines.random_ranking(labels, 0))
  assert (np.bincount(first[:, 0], minlength=3)[:3] > 60).all()  # 100 each expected, standard deviation 8


@pytest.fixture(scope="module")
def fitted():
  """A default market, reduced to what LambdaMART needs; text vectors are bags of title words."""
  market = make_market(MarketConfig(train_slates=2500, validation_slates=400, test_slates=1500), seed=0)
  words = sorted({word for item in market.catalogue.items for word in item.title.split()})
  vectors = np.asarray([[word in item.title.split() for word in words] for item in market.catalogue.items], np.float32)
  counts, items = LogCounts.fit(market.histories, market.catalogue), ItemArrays.of(market.catalogue, vectors)
  features = {split: slate_features(market.slates[split], market.catalogue, counts, items) for split in SPLITS}
  return market, counts, features, {split: slate_labels(market.slates[split]) for split in SPLITS}


def lambdamart(features, labels, seed=0):
  model = fit_lambdamart(features["train"], labels["train"], features["validation"], labels["validation"], seed=seed)
  return baselines.rank_by_scores(lambdamart_scores(model, features["test"]), labels["test"], "lambdamart")


def test_the_oracle_beats_every_ranker_and_lambdamart_beats_the_rest(fitted):
  market, counts, features, labels = fitted
  slates, truth = market.slates["test"], labels["test"]
  others = {
    "upstream": baselines.upstream_ranking(truth),
    "random": baselines.random_ranking(truth, 0),
    "popularity": baselines.popularity_ranking(slates, market.catalogue, counts.popularity),
    "last_transition": baselines.last_transition_ranking(slates, market.catalogue, counts.transitions),
  }
  learned = lambdamart(features, labels)
  oracle = baselines.utility_ranking(market.utilities["test"], truth)
  for metric in (recall_at_1, ndcg_at_3):
    assert metric(oracle, truth) > metric(learned, truth) + 0.05
    assert all(metric(learned, truth) > metric(order, truth) + 0.03 for order in others.values())
  assert 0.35 <= recall_at_1(learned, truth) <= 0.55
  assert recall_at_1(baselines.ideal_ranking(truth), truth) == 1
  np.testing.assert_array_equal(learned, lambdamart(features, labels))  # deterministic in the seed


def test_shuffled_labels_give_no_lift(fitted):
  _, _, features, labels = fitted
  rng = np.random.default_rng(0)
  shuffled = {split: rng.permuted(values, axis=1) for split, values in labels.items()}
  learned = recall_at_1(lambdamart(features, shuffled), shuffled["test"])
  # Chance is 1/10, with 1,500 slates a standard error of 0.008.
  assert abs(learned - 0.1) < 0.03


def test_slates_of_different_lengths_fit_and_pads_stay_last(fitted):
  _, _, features, labels = fitted
  n = 200
  short = {split: values[:n].copy() for split, values in labels.items()}
  kept = {split: features[split][:n] for split in SPLITS}
  for values in short.values():
    values[::2, 7:] = -1
  order = lambdamart(kept, short)
  assert (np.sort(order, axis=1) == np.arange(10)).all()
  assert (order[::2, 7:] == [7, 8, 9]).all()
