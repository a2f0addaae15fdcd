"""The evidence table: every fact of every candidate of a set of slates, in one pass; for trees, prompts, teachers, cards and serving.

Time: a count uses only events strictly before `Slate.timestamp`, of all users; nothing of the request itself or later enters. Slates
without a timestamp, and events of histories without timestamps, cannot be ordered: there every event of the fitted log counts, so the
caller must leave the targets out of the log. The other facts read the slate's own history, items and upstream columns, which are past by
construction.
"""

from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, Slate
from gr2_jax.data.slates import pad_rows
from gr2_jax.evidence.counts import ItemCounts, TransitionCounts
from gr2_jax.evidence.facts import BASIC_FACTS, FACTS
from gr2_jax.evidence.items import ItemArrays
from gr2_jax.evidence.requests import LogCounts, Requests, times_before


def slate_features(
  slates: Sequence[Slate],
  catalogue: Catalogue,
  counts: LogCounts,
  items: ItemArrays,
  *,
  facts: Sequence[str] = BASIC_FACTS,
  max_history: int = 20,
  lm_scores: np.ndarray | None = None,
  log_rows: np.ndarray | None = None,
) -> np.ndarray:
  """Facts of every candidate, float32 `[n, K, F]` in the order of `facts`; K is the longest slate, padding is 0.

  `items`: of the same catalogue. The last `max_history` items of a history are read. `lm_scores [n, K]`: for the fact `lm_score`.
  `log_rows [N + 1]`: which row of the counts each item has, -1 for one that their log lacks and for none (None: its own). Raises DataError
  for an unknown item, KeyError for an unknown fact, ValueError for `lm_score` without its scores.
  """
  requests = Requests.of(slates, catalogue, counts, items, max_history=max_history, lm_scores=lm_scores, log_rows=log_rows)
  table = np.empty((*requests.candidates.shape, len(facts)), np.float32)
  for i, name in enumerate(facts):
    table[..., i] = FACTS[name].of(requests)
  table[requests.candidates < 0] = 0
  return table


def last_item_rows(slates: Sequence[Slate], catalogue: Catalogue) -> np.ndarray:
  """The catalogue row of each slate's last history item, `[n]`."""
  return np.asarray([catalogue.rows[s.history[-1]] for s in slates], np.int64)


def candidate_counts(
  slates: Sequence[Slate], catalogue: Catalogue, counts: ItemCounts | TransitionCounts, sources: np.ndarray | None = None
) -> np.ndarray:
  """Past-only counts `[n, K]`: of the candidates, or of transitions from `sources [n]` (rows, needed then) to them; padding counts 0."""
  candidates = pad_rows([catalogue.to_rows(s.candidates) for s in slates])
  before = times_before(slates)
  if isinstance(counts, ItemCounts):
    return counts.count(candidates, before)
  if sources is None:
    raise ValueError("sources: transitions need the rows that they start from")
  return counts.count(sources[:, None], candidates, before)
