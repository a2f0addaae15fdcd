"""Every fact of a candidate that trees, prompts and teachers may read: one record each, and the only place that lists them.

A fact is strictly past: it reads what happened before the request (see `evidence.table`).
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from gr2_jax.evidence.requests import Requests


@dataclasses.dataclass(frozen=True)
class Fact:
  """`of(requests)`: its value for every candidate, `[n, K]` or what broadcasts to that. `unit` and `formula` are for readers."""

  of: Callable[[Requests], np.ndarray]
  unit: str
  formula: str


def _far_cosine(r: Requests) -> np.ndarray:
  taken = r.past_popularity[:, :, None] * r.popularity[:, None, :]
  return np.asarray((r.far_pairs / np.sqrt(np.maximum(taken, 1))).sum(axis=1))


def _lift_last(r: Requests) -> np.ndarray:
  """Transitions over what chance would give: those from the last item, times the candidate's share of all interactions."""
  chance = np.maximum(r.past_popularity[:, -1:] * r.popularity, 1)
  return np.log1p(r.next_counts[:, -1] * r.counts.popularity.total(r.before) / chance)


def _share_of_slate(counts: np.ndarray) -> np.ndarray:
  return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _share(matches: np.ndarray, r: Requests) -> np.ndarray:
  return np.asarray(matches.sum(axis=1) / np.maximum(r.lengths, 1))


def _is_last(matches: np.ndarray) -> np.ndarray:
  return matches[:, -1].astype(np.float32)


# log(1 + x) of a count: what separates 1 from 2 matters more than what separates 101 from 102.
FACTS: Mapping[str, Fact] = {
  "next_count_last": Fact(lambda r: np.log1p(r.next_counts[:, -1]), "log(1 + times)", "taken right after the last item"),
  "next_share_last": Fact(lambda r: _share_of_slate(r.next_counts[:, -1]), "share", "the same, of all candidates of the slate"),
  "next_count_second": Fact(lambda r: np.log1p(r.next_counts[:, -2]), "log(1 + times)", "taken right after the second-last item"),
  "cooccurrence_sum": Fact(
    lambda r: np.log1p(r.near_pairs.sum(axis=1)), "log(1 + times)", "within three steps of a past item, summed over the history"
  ),
  "cooccurrence_max": Fact(lambda r: np.log1p(r.near_pairs.max(axis=1)), "log(1 + times)", "the same with the past item that has most"),
  "leaf_next_count": Fact(
    lambda r: np.log1p(r.leaf_next_counts[:, -1]), "log(1 + times)", "its leaf category taken right after that of the last item"
  ),
  "popularity": Fact(lambda r: np.log1p(r.popularity), "log(1 + times)", "taken by anyone"),
  "leaf_share": Fact(lambda r: _share(r.same_leaf, r), "share", "past items of its leaf category"),
  "broad_share": Fact(lambda r: _share(r.same_broad, r), "share", "past items of its broadest category"),
  "leaf_is_last": Fact(lambda r: _is_last(r.same_leaf), "0 or 1", "its leaf category is that of the last item"),
  "broad_is_last": Fact(lambda r: _is_last(r.same_broad), "0 or 1", "its broadest category is that of the last item"),
  "brand_share": Fact(lambda r: _share(r.same_brand, r), "share", "past items of its brand"),
  "brand_is_last": Fact(lambda r: _is_last(r.same_brand), "0 or 1", "its brand is that of the last item"),
  "text_history": Fact(lambda r: r.similarity_to_mean, "cosine", "its text vector to the mean past one"),
  "text_last": Fact(lambda r: r.similarities[:, -1], "cosine", "its text vector to that of the last item"),
  "price_difference": Fact(lambda r: r.price_difference, "log ratio", "its price to the mean past one, 0 when either is unknown"),
  "price_distance": Fact(lambda r: np.abs(r.price_difference), "log ratio", "the same without its sign"),
  "upstream_rank": Fact(lambda r: np.arange(r.candidates.shape[1])[None], "places", "candidates before it in the upstream order"),
  "upstream_score": Fact(lambda r: r.upstream_scores, "as given", "what the upstream ranker gave it, 0 without one"),
  "age": Fact(lambda r: r.ages[:, 0], "log(1 + days)", "since it was first taken, -1 if never"),
  "since_last_taken": Fact(lambda r: r.ages[:, 1], "log(1 + days)", "since it was last taken, -1 if never"),
  "popularity_30": Fact(lambda r: np.log1p(r.recent(30)), "log(1 + times)", "taken within the last 30 days"),
  "popularity_90": Fact(lambda r: np.log1p(r.recent(90)), "log(1 + times)", "taken within the last 90 days"),
  "popularity_365": Fact(lambda r: np.log1p(r.recent(365)), "log(1 + times)", "taken within the last 365 days"),
  "gap": Fact(lambda r: r.gap, "log(1 + days)", "since the user's last item, -1 when unknown; the same for all candidates"),
  "history_length": Fact(lambda r: np.log1p(r.lengths), "log(1 + items)", "of the history that is read; the same for all candidates"),
  "far_count": Fact(
    lambda r: np.log1p(r.far_pairs.sum(axis=1)), "log(1 + times)", "in one history with a past item, summed over the history"
  ),
  "far_cosine": Fact(_far_cosine, "cosine", "the same, each count over the root of both items' popularity"),
  "far_decayed": Fact(
    lambda r: np.log1p((r.far_pairs * r.decay).sum(axis=1)),
    "log(1 + times)",
    "far_count, each step back in the history weighing .8",
  ),
  "followers_decayed": Fact(
    lambda r: np.log1p((r.pairs(r.counts.followers) * r.decay).sum(axis=1)),
    "log(1 + times)",
    "taken within five steps after a past item, each step back in the history weighing .8",
  ),
  "lift_last": Fact(_lift_last, "log(1 + ratio)", "next_count_last's count to what the popularity of both would give"),
  "leaf_next_count_second": Fact(
    lambda r: np.log1p(r.leaf_next_counts[:, -2]), "log(1 + times)", "its leaf category taken right after that of the second-last item"
  ),
  "brand_count": Fact(lambda r: r.same_brand.sum(axis=1), "items", "past items of its brand"),
  "words_shared": Fact(lambda r: r.shared_words(np.ones_like(r.items.rarity)), "words", "of its title that stand in a past title"),
  "rare_words_shared": Fact(lambda r: r.shared_words(r.items.rarity), "log(items / titles)", "the same, each by how few titles hold it"),
  "text_max": Fact(lambda r: np.where(r.past, r.similarities, -1).max(axis=1), "cosine", "its text vector to the nearest past one"),
  "text_decayed": Fact(
    lambda r: (r.similarities * r.decay).sum(axis=1) / np.maximum((r.past * r.decay).sum(axis=1), 1e-9),
    "cosine",
    "its text vector to the past ones, on average, each step back weighing .8",
  ),
  "lm_score": Fact(
    lambda r: r.relative_lm_scores, "nats", "its log-probability by the mid-trained model, minus the mean of the slate's candidates"
  ),
}
LM_SCORE = "lm_score"

BASIC_FACTS = tuple(FACTS)[: list(FACTS).index("upstream_score") + 1]  # what LambdaMART reads
