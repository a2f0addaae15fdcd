"""Full-catalogue next-item metrics, the same for every ranker: a score for each item, the target's rank among them."""

from collections.abc import Callable, Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue
from gr2_jax.data.slates import score_requests
from gr2_jax.data.splits import NextItem


def target_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Rank of each target, 0 = first, among scores `[B, N]`; N where it was not retrieved at all: its score is -inf or NaN.

  Items that tie with the target stand before it: two items of one semantic ID share a score, and neither may count as a free hit.
  """
  own = np.take_along_axis(scores, targets[:, None], axis=1)
  ranks = np.sum(scores >= own, axis=1) - 1
  retrieved: np.ndarray = np.where(own[:, 0] > -np.inf, ranks, scores.shape[1])
  return retrieved


def retrieval_ranks(
  scores_fn: Callable[[np.ndarray], np.ndarray],
  examples: Sequence[NextItem],
  catalogue: Catalogue,
  *,
  ranker: str = "the ranker",
  on_progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Ranks of the targets `[n]` among all items: `open`, and `masked` where items of the history cannot be recommended again.

  `scores_fn` and `ranker` as in `data.slates.score_requests`; -inf for an item that was not retrieved.
  """
  ranks: dict[str, list[np.ndarray]] = {"open": [], "masked": []}
  for requests, past, scores in score_requests(scores_fn, examples, catalogue, ranker=ranker):
    targets = np.array([catalogue.rows[request.target] for request in requests])
    ranks["open"].append(target_ranks(scores, targets))
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    which, step = np.nonzero(past >= 0)
    scores[which, past[which, step]] = -np.inf
    np.put_along_axis(scores, targets[:, None], own, axis=1)  # a target that the user bought before stays reachable
    ranks["masked"].append(target_ranks(scores, targets))
    if on_progress is not None:
      on_progress(len(requests))
  return {name: np.concatenate(parts) for name, parts in ranks.items()}


def retrieval_metrics(ranks: np.ndarray, cutoffs: Sequence[int] = (5, 10)) -> dict[str, float]:
  """R@k and N@k of a single target each; `n` is the number of requests."""
  metrics: dict[str, float] = {"n": len(ranks)}
  for k in cutoffs:
    hit = ranks < k
    metrics[f"recall@{k}"] = float(hit.mean())
    metrics[f"ndcg@{k}"] = float(np.where(hit, 1.0 / np.log2(ranks + 2.0), 0.0).mean())
  return metrics
