"""Past-only features of slate candidates, for the classical re-rankers.

Time: a count feature uses only events strictly before `Slate.timestamp`, of all users; nothing of the request itself or later enters.
Slates without a timestamp, and events of histories without timestamps, cannot be ordered: there every event of the fitted log counts,
so the caller must leave the targets out of the log. The other features read the slate's own history, items and upstream columns, which
are past by construction.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.slates import pad_rows
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts, index_names

WINDOW = 3  # steps within which two items of one history count as co-occurring

FEATURE_NAMES = (
  "next_count_last",  # log(1 + directed transitions from the last item)
  "next_share_last",  # the same as a share of the last item's transitions among the slate's candidates
  "next_count_second",  # log(1 + directed transitions from the item before the last)
  "cooccurrence_sum",  # log(1 + windowed co-occurrence with all history items)
  "cooccurrence_max",  # log(1 + the largest of these)
  "leaf_next_count",  # log(1 + directed transitions from the last item's leaf category to the candidate's)
  "popularity",  # log(1 + interactions)
  "leaf_share",  # share of the history in the candidate's leaf category
  "broad_share",  # share of the history in the candidate's broadest category
  "leaf_is_last",  # 1 when the leaf category is that of the last item
  "broad_is_last",
  "brand_share",  # share of the history of the candidate's brand
  "brand_is_last",
  "text_history",  # cosine to the mean history vector
  "text_last",  # cosine to the last item's vector
  "price_difference",  # log price minus the history's mean log price, 0 when either is unknown
  "price_distance",  # its absolute value
  "upstream_rank",
  "upstream_score",  # 0 when the slate carries none
)


@dataclasses.dataclass(frozen=True, eq=False)
class LogCounts:
  """What the features count in the log: items, directed next items, windowed co-occurrence, and directed next leaf categories."""

  popularity: ItemCounts
  transitions: TransitionCounts
  cooccurrence: TransitionCounts
  leaf_transitions: TransitionCounts

  @classmethod
  def fit(cls, histories: Sequence[History], catalogue: Catalogue) -> "LogCounts":
    """Counts `histories`; raises DataError for an item that the catalogue lacks."""
    return cls(
      popularity=ItemCounts.fit(histories, catalogue),
      transitions=TransitionCounts.fit(histories, catalogue),
      cooccurrence=TransitionCounts.fit(histories, catalogue, window=WINDOW, directed=False),
      leaf_transitions=TransitionCounts.fit(histories, catalogue, groups=_leaves(catalogue)),
    )


def slate_features(
  slates: Sequence[Slate], catalogue: Catalogue, counts: LogCounts, vectors: np.ndarray, *, max_history: int = 20
) -> np.ndarray:
  """Features of every candidate, float32 `[n, K, F]` in the order of `FEATURE_NAMES`; K is the longest slate, padding is 0.

  `vectors [N, D]`: one text vector per catalogue row. The last `max_history` items of a history are read. Raises DataError for an unknown
  item or a wrong number of vectors.
  """
  if len(vectors) != len(catalogue):
    raise DataError(f"vectors: {len(vectors)} rows for {len(catalogue)} items; embed the same catalogue")
  history = pad_rows([catalogue.to_rows(s.history[-max_history:]) for s in slates], left=True)
  candidates = pad_rows([catalogue.to_rows(s.candidates) for s in slates])
  before = _before(slates)
  columns = {
    **_count_columns(history, candidates, before, counts, catalogue),
    **_match_columns(history, candidates, catalogue),
    **_text_columns(history, candidates, vectors),
    **_price_columns(history, candidates, catalogue),
    "upstream_rank": np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape),
    "upstream_score": pad_rows([s.upstream_scores or (0.0,) * len(s.candidates) for s in slates], fill=0.0),
  }
  features = np.stack([columns[name] for name in FEATURE_NAMES], axis=-1).astype(np.float32)
  return np.where((candidates >= 0)[:, :, None], features, 0)


def last_item_rows(slates: Sequence[Slate], catalogue: Catalogue) -> np.ndarray:
  """The catalogue row of each slate's last history item, `[n]`."""
  return np.asarray([catalogue.rows[s.history[-1]] for s in slates], np.int64)


def candidate_counts(
  slates: Sequence[Slate], catalogue: Catalogue, counts: ItemCounts | TransitionCounts, sources: np.ndarray | None = None
) -> np.ndarray:
  """Past-only counts `[n, K]`: of the candidates, or of transitions from `sources [n]` (rows, needed then) to them; padding counts 0."""
  candidates = pad_rows([catalogue.to_rows(s.candidates) for s in slates])
  before = _before(slates)
  if isinstance(counts, ItemCounts):
    return counts.count(candidates, before)
  if sources is None:
    raise ValueError("sources: transitions need the rows that they start from")
  return counts.count(sources[:, None], candidates, before)


def _before(slates: Sequence[Slate]) -> np.ndarray | None:
  """Request times `[n, 1]`, None when no slate has one; a single slate without a time counts the whole log."""
  if all(s.timestamp is None for s in slates):
    return None
  forever = np.iinfo(np.int64).max
  return np.asarray([forever if s.timestamp is None else s.timestamp for s in slates], np.int64)[:, None]


def _leaves(catalogue: Catalogue) -> np.ndarray:
  """Index of each item's leaf category `[N]`, -1 for none."""
  return index_names([item.leaf or None for item in catalogue.items])[1]


def _count_columns(
  history: np.ndarray, candidates: np.ndarray, before: np.ndarray | None, counts: LogCounts, catalogue: Catalogue
) -> dict[str, np.ndarray]:
  last = history[:, -1:]
  second = history[:, -2:-1] if history.shape[1] > 1 else np.full_like(last, -1)
  deep_before = None if before is None else before[:, :, None]
  together = counts.cooccurrence.count(history[:, :, None], candidates[:, None, :], deep_before)
  next_last = counts.transitions.count(last, candidates, before)
  leaves = np.append(_leaves(catalogue), -1)  # row -1 reads the last entry
  return {
    "next_count_last": np.log1p(next_last),
    "next_share_last": next_last / np.maximum(next_last.sum(axis=1, keepdims=True), 1),
    "next_count_second": np.log1p(counts.transitions.count(second, candidates, before)),
    "cooccurrence_sum": np.log1p(together.sum(axis=1)),
    "cooccurrence_max": np.log1p(together.max(axis=1)),
    "leaf_next_count": np.log1p(counts.leaf_transitions.count(leaves[last], leaves[candidates], before)),
    "popularity": np.log1p(counts.popularity.count(candidates, before)),
  }


def _match_columns(history: np.ndarray, candidates: np.ndarray, catalogue: Catalogue) -> dict[str, np.ndarray]:
  lengths = np.maximum((history >= 0).sum(axis=1), 1)[:, None]
  columns = {}
  for name, index in (
    ("leaf", _leaves(catalogue)),
    ("broad", index_names([item.categories[0] if item.categories else None for item in catalogue.items])[1]),
    ("brand", index_names([item.brand for item in catalogue.items])[1]),
  ):
    codes = np.append(index, -1)
    past, mine = codes[history], codes[candidates]
    match = (past[:, :, None] == mine[:, None, :]) & (mine >= 0)[:, None, :]
    columns[f"{name}_share"] = match.sum(axis=1) / lengths
    columns[f"{name}_is_last"] = match[:, -1].astype(np.float32)
  return columns


def _text_columns(history: np.ndarray, candidates: np.ndarray, vectors: np.ndarray) -> dict[str, np.ndarray]:
  vectors = np.asarray(vectors, np.float32)
  unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
  unit = np.concatenate([unit, np.zeros_like(unit[:1])])  # row -1 reads zeros
  mean = np.zeros((len(history), unit.shape[1]), np.float32)
  for column in history.T:
    mean += unit[column]
  mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
  last = unit[history[:, -1]]
  cosines = np.zeros((2, *candidates.shape), np.float32)
  for k, column in enumerate(candidates.T):  # one candidate at a time: [n, K, D] would not fit for large logs
    mine = unit[column]
    cosines[0, :, k] = np.sum(mine * mean, axis=1)
    cosines[1, :, k] = np.sum(mine * last, axis=1)
  return {"text_history": cosines[0], "text_last": cosines[1]}


def _price_columns(history: np.ndarray, candidates: np.ndarray, catalogue: Catalogue) -> dict[str, np.ndarray]:
  log_price = np.asarray([np.nan if item.price is None else np.log(max(item.price, 0.01)) for item in catalogue.items] + [np.nan])
  past = log_price[history]
  known = ~np.isnan(past)
  usual = np.where(known, past, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
  difference = np.nan_to_num(log_price[candidates] - usual[:, None])
  return {"price_difference": difference, "price_distance": np.abs(difference)}
