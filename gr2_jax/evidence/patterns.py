"""Patterns mined from training histories: which categories and items follow each other, and a slate's features made of them.

Time: a count uses only events strictly before `Slate.timestamp`, of all users; slates without a timestamp, and events of histories without
timestamps, cannot be ordered, and there every event counts. The other features read the slate's own history and order, which are past by
construction. `mine_priming` reads whole training histories, so give it none that hold a target.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, History, Slate
from gr2_jax.evidence.counts import TransitionCounts, index_names

PATTERN_FEATURES = (
  "complement",  # how often the candidate's category follows those of the latest items, in units of the most frequent follower
  "taste",  # share of the history in the candidate's category, recent items weighing more
  "brand",  # the same for its brand
  "after",  # how often the candidate followed the latest items
  "upstream",  # 1 for the first of the upstream order, falling to 0 for the last
)
LATEST_ITEMS = 3  # items whose successors count as complements
_LATEST_DECAY = 0.5  # weight of each step further back among the latest
_SHARE_DECAY = 0.9  # the same over the whole history
_OFTEN = 3  # successions above this add nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Patterns:
  """What training histories say of categories, brands and items; every count can be limited to what happened before a request.

  `category_of [N]`, `brand_of [N]`: index into `categories` (leaves), `brands`; entry 0 of each stands for none.
  `successions`: from category to category, by these indices. `copurchases`: from item to item, by catalogue rows.
  """

  categories: tuple[str, ...]
  brands: tuple[str, ...]
  category_of: np.ndarray
  brand_of: np.ndarray
  successions: TransitionCounts
  copurchases: TransitionCounts


def fit_patterns(histories: Sequence[History], catalogue: Catalogue) -> Patterns:
  """Mines leaf-category successions and item successions from training histories; raises DataError for an unknown item."""
  categories, category_of = index_names([item.leaf or None for item in catalogue.items])
  brands, brand_of = index_names([item.brand or None for item in catalogue.items])
  return Patterns(
    categories=("", *categories),
    brands=("", *brands),
    category_of=category_of + 1,
    brand_of=brand_of + 1,
    successions=TransitionCounts.fit(histories, catalogue, groups=category_of + 1),
    copurchases=TransitionCounts.fit(histories, catalogue),
  )


def pattern_features(slate: Slate, patterns: Patterns, catalogue: Catalogue) -> np.ndarray:
  """Features `[K, 5]` in 0..1, in the order of `PATTERN_FEATURES`; only what happened before the request. Needs a history."""
  rows = np.asarray(catalogue.to_rows(slate.candidates))
  past = np.asarray(catalogue.to_rows(slate.history))
  latest = past[::-1][:LATEST_ITEMS]
  near = _LATEST_DECAY ** np.arange(len(latest))
  every = np.arange(len(patterns.categories))
  followers = patterns.successions.count(patterns.category_of[latest][:, None], every, slate.timestamp)
  followers[:, 0] = 0  # a candidate without a category complements nothing
  complement = near @ (followers / np.maximum(followers.max(1, keepdims=True), 1)) / near.sum()
  far = _SHARE_DECAY ** np.arange(len(past))[::-1]
  after = near @ patterns.copurchases.count(latest[:, None], rows, slate.timestamp)
  columns = {
    "complement": complement[patterns.category_of[rows]],
    "taste": _weighted_share(patterns.category_of, past, rows, far),
    "brand": _weighted_share(patterns.brand_of, past, rows, far),
    "after": np.minimum(after, _OFTEN) / _OFTEN,
    "upstream": 1 - np.arange(len(rows)) / (len(rows) - 1),
  }
  return np.stack([columns[name] for name in PATTERN_FEATURES], axis=-1)


def _weighted_share(kind_of: np.ndarray, past: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Weighted share of the history that has the candidate's category or brand; 0 where the candidate has none."""
  same = (kind_of[past][:, None] == kind_of[rows]) & (kind_of[rows] > 0)
  return np.asarray(weights @ same / weights.sum())


def mine_priming(histories: Sequence[History], catalogue: Catalogue, top: int = 8) -> str:
  """Knowledge priming: the `top` most frequent successions of two different leaf categories in the training histories, as text.

  Raises DataError for an unknown item.
  """
  counts: Counter[tuple[str, str]] = Counter()
  for history in histories:
    leaves = [catalogue.items[row].leaf for row in catalogue.to_rows(history.items)]
    counts.update((a, b) for a, b in itertools.pairwise(leaves) if a and b and a != b)
  ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:top]
  return ", ".join(f"{a} then {b}" for (a, b), _ in ordered)
