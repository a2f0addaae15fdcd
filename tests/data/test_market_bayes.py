"""The Bayes order against the generator itself: users who look alike choose as their posterior says, and no order does better."""

import collections
import dataclasses

import numpy as np
import pytest

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.market_bayes import choice_posterior, has_few_sets

TWIN = MarketConfig(
  num_items=6,
  broad_categories=1,
  leaves_per_broad=2,
  num_brands=3,
  favourite_brands=1,
  follows_per_item=1,
  train_slates=30_000,
  validation_slates=1,
  test_slates=1,
  min_history=2,
  max_history=2,
  slate_size=2,
  brand_weight=1.5,
  taste_weight=1.5,
  upstream_noise=1e4,  # scores say nothing, so that users are alike whose histories and candidates are
)
LARGE = MarketConfig(num_items=240, num_brands=12, slate_size=6, train_slates=1, validation_slates=1, test_slates=500)


def ask(config, market, slates, **options):
  return choice_posterior(config, market.shelf, market.catalogue, slates, seed=0, **options)


@pytest.fixture(scope="module")
def market():
  return make_market(LARGE, seed=2)


@pytest.mark.parametrize("labels", ["single", "graded"])
def test_users_who_look_alike_choose_as_their_posterior_says(labels):
  """No likelihood enters the left side: it counts the labels of 30,000 simulated users by what their request shows."""
  config = dataclasses.replace(TWIN, labels=labels, examination_decay=0.0)
  market = make_market(config, seed=0)
  alike = collections.defaultdict(list)
  for slate in market.slates["train"]:
    taken = {candidate: label > 0 for candidate, label in zip(slate.candidates, slate.labels, strict=True)}
    alike[slate.history, frozenset(slate.candidates)].append((slate, taken))
  groups = [group for group in alike.values() if len(group) >= 100]
  assert len(groups) > 50
  found = ask(config, market, [group[0][0] for group in groups], draws=2000)
  squares = []
  for group, probabilities in zip(groups, found.probabilities, strict=True):
    first = group[0][0].candidates[0]
    share, p = np.mean([taken[first] for _, taken in group]), probabilities[0]
    squares.append((share - p) ** 2 * len(group) / (p * (1 - p)))
  # Squares of standard normal numbers: their mean is 1, with a standard error of sqrt(2 / groups).
  assert np.mean(squares) == pytest.approx(1, abs=4 * np.sqrt(2 / len(groups)))


def test_it_is_as_often_right_as_it_says_and_between_the_upstream_order_and_the_oracle(market):
  slates = market.slates["test"]
  labels = np.array([slate.labels for slate in slates])
  found = ask(LARGE, market, slates)
  np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
  # Each label is a draw by the posterior, so that in any set of candidates their number is what it says, up to chance.
  for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 1)):
    inside = (found.probabilities >= low) & (found.probabilities < high)
    said, spread = found.probabilities[inside].sum(), np.sqrt((found.probabilities * (1 - found.probabilities))[inside].sum())
    assert labels[inside].sum() == pytest.approx(said, abs=4 * spread + 0.02 * said)
  chosen = np.exp(market.utilities["test"].astype(np.float64))
  chosen /= chosen.sum(axis=1, keepdims=True)  # in expectation over the choice, which leaves only the users to chance

  def expected_recall(scores):
    return float(np.take_along_axis(chosen, scores.argmax(axis=1)[:, None], axis=1).mean())

  bayes = expected_recall(found.probabilities)
  upstream = expected_recall(np.array([slate.upstream_scores for slate in slates]))
  assert upstream + 0.1 < bayes < expected_recall(chosen) - 0.02
  assert np.median(found.effective) > 60  # of 256


def test_more_of_the_history_brings_it_nearer_to_the_oracle(market):
  slates = [slate for slate in market.slates["test"] if len(slate.history) >= 8]
  utilities = market.utilities["test"][[len(slate.history) >= 8 for slate in market.slates["test"]]].astype(np.float64)
  chosen = np.exp(utilities - utilities.max(axis=1, keepdims=True))
  chosen /= chosen.sum(axis=1, keepdims=True)

  def cross_entropy(latest):
    of = ask(LARGE, market, [dataclasses.replace(slate, history=slate.history[-latest:]) for slate in slates])
    return float(-(chosen * np.log(of.probabilities)).sum(axis=1).mean())

  # The first of a shortened history was bought after nothing, as far as the posterior knows: with two items the last one's chain is whole.
  assert cross_entropy(8) < cross_entropy(4) - 0.02 < cross_entropy(2) - 0.04


def test_it_reads_no_label_and_depends_on_nothing_but_the_request(market):
  slates = market.slates["test"][:8]
  blind = [dataclasses.replace(slate, labels=slate.labels[::-1], timestamp=None, segment=None, user="x") for slate in slates]
  whole, again = ask(LARGE, market, slates), ask(LARGE, market, blind)
  np.testing.assert_array_equal(whole.probabilities, again.probabilities)
  np.testing.assert_array_equal(ask(LARGE, market, slates[3:4]).probabilities[0], whole.probabilities[3])


def test_other_draws_agree_within_what_the_effective_number_says(market):
  slates = market.slates["test"][:40]
  few, many = ask(LARGE, market, slates), ask(LARGE, market, slates, draws=3000)
  p = many.probabilities
  errors = (few.probabilities - p) / np.sqrt(p * (1 - p) / few.effective[:, None])
  assert 0.05 < np.sqrt((errors**2).mean()) < 1.3  # sets of brands are stratified, so that it may be less


def test_favourites_of_too_many_sets_are_known_beforehand():
  assert has_few_sets(MarketConfig()) and not has_few_sets(MarketConfig(num_brands=36, favourite_brands=6))
