"""The published counts of Amazon Beauty, from its JSONL files when they are there."""

import pathlib

import numpy as np
import pytest

from gr2_jax.data.jsonl import read_interactions, read_items
from gr2_jax.data.splits import leave_one_out
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon_beauty"
pytestmark = pytest.mark.skipif(not (FOLDER / "items.jsonl.gz").exists(), reason="the Amazon Beauty files are not here")


def test_beauty_counts_and_reference_points():
  catalogue = read_items(FOLDER / "items.jsonl.gz")
  histories = read_interactions(FOLDER / "interactions.jsonl.gz", catalogue)
  assert (len(catalogue), len(histories)) == (12_101, 22_363)
  assert sum(len(history.items) for history in histories) == 198_502
  assert sum(item.title == "" for item in catalogue.items) == 7

  split = leave_one_out(histories, max_history=50)
  assert sum(len(history.items) for history in split.train) == 153_776
  assert sum(request.segment == "same_day" for request in split.test) == 9_719
  assert max(len(request.history) for request in split.test) == 50

  targets = catalogue.to_rows([request.target for request in split.test])
  popularity = ItemCounts.fit(split.train, catalogue)
  popular = [row for row, _ in popularity.most_popular(10)]
  assert round(100 * np.isin(targets, popular).mean(), 2) == 1.14
  taken = popularity.count(np.arange(len(catalogue)))
  assert (taken > 0).sum() == 12_068
  assert (taken[targets] == 0).sum() == 138

  transitions = TransitionCounts.fit(split.train, catalogue)
  assert transitions.events.codes.size == 153_776 - 22_363  # one step fewer than items for every user
  last = catalogue.to_rows([request.history[-1] for request in split.test])
  times = np.array([request.timestamp for request in split.test])
  past, ever = transitions.count(last, targets, times), transitions.count(last, targets)
  assert (past <= ever).all()
  assert 0 < past.sum() < ever.sum()
