"""Events that come later: the facts of a fit on the whole log, and what cannot be counted is named."""

import dataclasses

import numpy as np
import pytest

from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.data.schema import Catalogue, DataError, History, Item
from gr2_jax.evidence.counts import ALWAYS
from gr2_jax.evidence.facts import FACTS
from gr2_jax.evidence.growing import Event, GrowingLog
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts
from gr2_jax.evidence.table import slate_features

CATALOGUE = Catalogue(tuple(Item(name, name) for name in "abc"))


@pytest.mark.parametrize("batch", [37, 10_000])
def test_facts_are_those_of_the_whole_log(batch):
  market = make_market(MarketConfig(num_items=60, train_slates=60, validation_slates=2, test_slates=2, slate_size=5), seed=1)
  slates = (*market.slates["train"], *(dataclasses.replace(slate, timestamp=None) for slate in market.slates["train"][:5]))
  items = ItemArrays.of(market.catalogue, np.random.default_rng(0).normal(size=(60, 8)))
  cuts = np.random.default_rng(2).integers(0, 9, len(market.histories))
  whole, known, events = list(market.histories), [], []
  for i, (h, cut) in enumerate(zip(market.histories, cuts, strict=True)):
    unknown = (ALWAYS,) * cut if i == 5 else h.timestamps[:cut]  # a history of unknown times before events that have one
    whole[i] = dataclasses.replace(h, timestamps=unknown + h.timestamps[cut:])
    if cut:
      known.append(History(h.user, h.items[:cut], () if i == 5 else h.timestamps[:cut]))
    events += [Event(h.user, item, time) for item, time in zip(h.items[cut:], h.timestamps[cut:], strict=True)]
  events.sort(key=lambda event: event.timestamp)
  assert 0 < cuts[5] < len(whole[5].items) and not all(cuts)
  log = GrowingLog(known, market.catalogue)
  before = log.counts

  def table(counts):
    names = tuple(name for name in FACTS if name != "lm_score")
    return slate_features(slates, market.catalogue, counts, items, facts=names)

  first = table(before)
  for start in range(0, len(events), batch):
    log.add(events[start : start + batch])
  np.testing.assert_array_equal(table(log.counts), table(LogCounts.fit(whole, market.catalogue)))
  assert (table(log.counts) != first).any()
  np.testing.assert_array_equal(table(before), first)  # who took them before reads on


BAD = {
  "an unknown item": (Event("u", "z", 40), "event 2: unknown item 'z'"),
  "milliseconds": (Event("u", "b", 1_700_000_000_000), "event 2: timestamp: 1700000000000 is no time in Unix seconds"),
  "a time before 1970": (Event("u", "b", -1), "event 2: timestamp: -1"),
  "a time before the user's last": (Event("u", "b", 19), "event 2: timestamp: 19 of user 'u' lies before 20"),
}


@pytest.mark.parametrize("event, told", BAD.values(), ids=BAD)
def test_what_cannot_be_counted_is_named_and_nothing_is(event, told):
  log = GrowingLog([History("u", ("a", "b"), (10, 20))], CATALOGUE)
  before = log.counts
  with pytest.raises(DataError, match=told):
    log.add([Event("v", "a", 15), event])
  assert log.counts is before
  log.add([Event("u", "c", 20), Event("v", "a", 15)])  # at the same second it comes behind
  assert log.counts.transitions.count(1, 2) == 1 and log.counts.popularity.count(0) == 2


def test_only_the_latest_items_are_followed():
  log = GrowingLog([History("u", ("a", *"b" * 50), tuple(range(51)))], CATALOGUE)
  log.add([Event("u", "c", 60), Event("u", "c", 61)])
  whole = LogCounts.fit([History("u", ("a", *"b" * 50, "c", "c"), (*range(51), 60, 61))], CATALOGUE)
  for counts in (log.counts, whole):
    assert counts.far_cooccurrence.count([0, 1, 2], 2).tolist() == [0, 50 + 49, 1]
