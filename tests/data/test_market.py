"""The market: valid records, no leaks, the announced difficulty, and the patterns that a reader of the prompt can find."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data.market import DAY, MarketConfig, _clicks_given_any, _draw_shelf, examination, make_market
from gr2_jax.data.schema import SPLITS, check_history, check_item, check_slate

SMALL = MarketConfig(num_items=120, train_slates=60, validation_slates=20, test_slates=20)


@pytest.fixture(scope="module")
def market():
  return make_market(MarketConfig(), seed=0)


def labels_of(market, split):
  return np.asarray([s.labels for s in market.slates[split]])


def recall_at_1(order, labels):
  return float((np.take_along_axis(labels, order[:, :1], axis=1) > 0).mean())


@pytest.mark.parametrize("labels", ["single", "graded"])
def test_every_record_passes_the_schema(labels):
  market = make_market(dataclasses.replace(SMALL, labels=labels), seed=3)
  for item in market.catalogue.items:
    check_item(item)
  for history in market.histories:
    check_history(history, market.catalogue)
    assert len(set(history.items)) == len(history.items)
  for split in SPLITS:
    assert market.utilities[split].shape == (len(market.slates[split]), SMALL.slate_size)
    assert market.utilities[split].dtype == np.float32
    for slate in market.slates[split]:
      check_slate(slate, market.catalogue)
      assert list(slate.upstream_scores) == sorted(slate.upstream_scores, reverse=True)
      assert not set(slate.candidates) & set(slate.history)


def test_same_seed_same_market_and_another_seed_another():
  first, again, other = make_market(SMALL, 5), make_market(SMALL, 5), make_market(SMALL, 6)
  assert first.catalogue == again.catalogue and first.histories == again.histories and first.slates == again.slates
  assert all(np.array_equal(first.utilities[s], again.utilities[s]) for s in SPLITS)
  assert first.slates != other.slates


def test_the_upstream_ranker_and_the_labels_leave_purchases_and_candidates_alone():
  base = make_market(SMALL, 5)
  changed = make_market(dataclasses.replace(SMALL, labels="graded", upstream_noise=3.0), 5)
  assert base.histories == changed.histories
  assert all(set(a.candidates) == set(b.candidates) for a, b in zip(base.slates["test"], changed.slates["test"], strict=True))


def test_users_are_disjoint_requests_come_after_their_history_and_test_comes_last(market):
  users = {split: {s.user for s in market.slates[split]} for split in SPLITS}
  assert not users["train"] & users["test"] and not users["train"] & users["validation"] and not users["validation"] & users["test"]
  log = {h.user: h for h in market.histories}
  for split in SPLITS:
    for slate in market.slates[split]:
      assert log[slate.user].items == slate.history  # the request itself is not in the log
      assert log[slate.user].timestamps[-1] < slate.timestamp
      same_day = log[slate.user].timestamps[-1] // DAY == slate.timestamp // DAY
      assert slate.segment == ("same_day" if same_day else "different_day")
  latest = {split: max(s.timestamp for s in market.slates[split]) for split in SPLITS}
  earliest = {split: min(s.timestamp for s in market.slates[split]) for split in SPLITS}
  assert latest["train"] <= earliest["validation"] and latest["validation"] <= earliest["test"]


def test_difficulty_of_the_default_market(market):
  labels = np.concatenate([labels_of(market, split) for split in SPLITS])
  utilities = np.concatenate([market.utilities[split] for split in SPLITS])
  assert (labels.sum(axis=1) == 1).all()
  upstream = labels[:, 0].mean()
  oracle = recall_at_1(np.argsort(-utilities, axis=1), labels)
  assert 0.20 <= upstream <= 0.28  # informative (chance is 0.1) but poor
  assert 0.60 <= oracle <= 0.75


def test_single_targets_follow_the_softmax_of_utility(market):
  # Multinomial logit: the expected label of a candidate is its softmax share, so the mean share of the targets that the oracle puts first
  # must equal the oracle's R@1 up to sampling noise (5,500 slates: standard error below 0.007).
  labels = np.concatenate([labels_of(market, split) for split in SPLITS])
  utilities = np.concatenate([market.utilities[split] for split in SPLITS]).astype(np.float64)
  shares = np.exp(utilities - utilities.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  assert recall_at_1(np.argsort(-utilities, axis=1), labels) == pytest.approx(shares.max(axis=1).mean(), abs=0.025)


def test_complements_brands_and_follow_links_show_in_the_log(market):
  config = MarketConfig()
  catalogue = market.catalogue
  leaves = [item.leaf for item in catalogue.items[: config.broad_categories * config.leaves_per_broad]]  # rows go round the leaves
  per_broad = config.leaves_per_broad
  complement = {leaf: leaves[i // per_broad * per_broad + (i + 1) % per_broad] for i, leaf in enumerate(leaves)}
  follows = _draw_shelf(config, np.random.default_rng(np.random.SeedSequence(0).spawn(7)[0]))["follows"]
  steps = complements = brands = followed = 0
  for history in market.histories:
    rows = catalogue.to_rows(history.items)
    items = [catalogue.items[row] for row in rows]
    for t in range(3, len(rows)):
      steps += 1
      complements += complement[items[t - 1].leaf] == items[t].leaf
      brands += items[t].brand in {item.brand for item in items[:t]}
      followed += rows[t] in follows[rows[t - 1]]
  # By chance: 1 of 12 leaves; about 5 of 24 brands; 3 of 600 items.
  assert complements / steps > 0.5
  assert brands / steps > 0.45
  assert followed / steps > 0.08


def test_titles_name_brand_and_category(market):
  for item in market.catalogue.items:
    assert item.title.startswith(item.brand) and item.leaf in item.title
  titles = [item.title for item in market.catalogue.items]
  assert len(set(titles)) == len(titles)


def test_graded_slates_have_clicks_conversions_and_position_bias():
  market = make_market(dataclasses.replace(MarketConfig(), labels="graded"), seed=1)
  labels = labels_of(market, "train")
  assert (labels.max(axis=1) >= 1).all() and set(np.unique(labels)) == {0, 1, 2}
  assert 1.2 < (labels > 0).sum(axis=1).mean() < 5
  np.testing.assert_allclose(market.slates["train"][0].propensities, examination(10, MarketConfig().examination_decay))
  assert set(market.slates["test"][0].propensities) == {1.0}
  # Inverse-propensity clicks are flatter over positions than raw clicks: the logged positions bias the labels.
  raw = (labels > 0).mean(axis=0)
  corrected = raw / np.asarray(market.slates["train"][0].propensities)
  assert raw[0] / raw[-1] > 1.5 * corrected[0] / corrected[-1]
  # Where every candidate was examined, the oracle's first is clicked far more often than the upstream's.
  test = labels_of(market, "test")
  assert recall_at_1(np.argsort(-market.utilities["test"], axis=1), test) > (test[:, 0] > 0).mean() + 0.15


def test_clicks_given_any_are_the_conditional_distribution():
  # p = (.5, .5): P(11 | any) = P(10 | any) = P(01 | any) = .25 / .75 = 1/3.
  clicks = _clicks_given_any(np.full((30_000, 2), 0.5), np.random.default_rng(0))
  shares = np.bincount(clicks[:, 0] * 2 + clicks[:, 1], minlength=4) / len(clicks)
  np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.012)


@pytest.mark.parametrize(
  ("change", "field"),
  [
    ({"slate_size": 1}, "slate_size"),
    ({"num_brands": 99}, "num_brands"),
    ({"labels": "both"}, "labels"),
    ({"test_slates": 0}, "test_slates"),
    ({"min_history": 13}, "min_history"),
    ({"taste_weight": float("nan")}, "taste_weight"),
  ],
)
def test_impossible_sizes_are_named(change, field):
  with pytest.raises(ValueError, match=f"^{field}: "):
    make_market(dataclasses.replace(SMALL, **change), seed=0)
