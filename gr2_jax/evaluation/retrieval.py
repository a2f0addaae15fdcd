"""Full-catalogue next-item metrics, the same for every ranker: a score for each item, the target's rank among them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.schema import Catalogue
from gr2_jax.data.slates import check_scores, request_batches, score_requests
from gr2_jax.data.splits import NextItem
from gr2_jax.evaluation.paired import RESAMPLES, paired_bootstrap

_COMPARED = ("recall@5", "recall@10", "ndcg@10")


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
    ranks["masked"].append(_masked_ranks(scores, past, targets))
    if on_progress is not None:
      on_progress(len(requests))
  return {name: np.concatenate(parts) for name, parts in ranks.items()}


def _masked_ranks(scores: np.ndarray, past: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Ranks of the targets where items of the history `past [B, H]` cannot be recommended again; writes into the scores."""
  own = np.take_along_axis(scores, targets[:, None], axis=1)
  which, step = np.nonzero(past >= 0)
  scores[which, past[which, step]] = -np.inf
  np.put_along_axis(scores, targets[:, None], own, axis=1)  # a target that the user bought before stays reachable
  return target_ranks(scores, targets)


def ranks_by_row(
  score_rows: Callable[[np.ndarray], Iterable[tuple[str, np.ndarray]]],
  examples: Sequence[NextItem],
  catalogue: Catalogue,
  *,
  on_progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Masked ranks of the targets `[n]` by several rankers side by side, so that one may use what another has computed.

  `score_rows(history rows [B, H])` gives name and scores `[B, N]` of one after the other; else as `retrieval_ranks`.
  """
  ranks: dict[str, list[np.ndarray]] = {}
  for requests, past in request_batches(examples, catalogue):
    targets = np.array([catalogue.rows[request.target] for request in requests])
    for name, scores in score_rows(past):
      found = _masked_ranks(check_scores(np.asarray(scores)[: len(requests)], name), past[: len(requests)], targets)
      ranks.setdefault(name, []).append(found)
    if on_progress is not None:
      on_progress(len(requests))
  return {name: np.concatenate(parts) for name, parts in ranks.items()}


def draw_users(requests: Sequence[NextItem], users: int | None, seed: int) -> Sequence[NextItem]:
  """The requests of so many users, drawn by the seed; all where there are no more, or None."""
  names = list(dict.fromkeys(request.user for request in requests))
  if users is None or len(names) <= users:
    return requests
  chosen = {names[i] for i in np.random.default_rng(seed).choice(len(names), users, replace=False)}
  return [request for request in requests if request.user in chosen]


def retrieval_metrics(ranks: np.ndarray, cutoffs: Sequence[int] = (5, 10)) -> dict[str, float]:
  """R@k and N@k of a single target each; `n` is the number of requests."""
  metrics: dict[str, float] = {"n": len(ranks)}
  for k in cutoffs:
    metrics[f"recall@{k}"] = float(_hits(ranks, k).mean())
    metrics[f"ndcg@{k}"] = float(_gains(ranks, k).mean())
  return metrics


def _hits(ranks: np.ndarray, k: int) -> np.ndarray:
  return (ranks < k).astype(np.float64)


def _gains(ranks: np.ndarray, k: int) -> np.ndarray:
  return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def compare_retrieval(
  ranks: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
  """R@5, R@10 and N@10 of rankers by their ranks `[n]` of the same targets, one of each user, and of `pairs` the first minus the second.

  `{"n", "rows": {NAME: {METRIC: {"value", "ci95"}}}, "paired": {"NAME_vs_NAME": {METRIC: {"delta", "ci95"}}}}`, intervals by a bootstrap
  of users that all share. Raises ValueError for fewer than two users, or ranks of other targets.
  """
  values = {name: np.stack([_hits(of, 5), _hits(of, 10), _gains(of, 10)], axis=1) for name, of in ranks.items()}
  columns = [*values.values(), *(values[first] - values[second] for first, second in pairs)]
  found = paired_bootstrap(np.concatenate(columns, axis=1), np.zeros((len(columns[0]), 3 * len(columns))), seed=seed, resamples=resamples)
  figures = np.stack([found.delta, found.delta_low, found.delta_high], axis=1).reshape(-1, len(_COMPARED), 3).tolist()

  def describe(name: str, of: list[list[float]]) -> dict[str, Any]:
    return {metric: {name: value, "ci95": [low, high]} for metric, (value, low, high) in zip(_COMPARED, of, strict=True)}

  return {
    "n": len(columns[0]),
    "rows": {name: describe("value", of) for name, of in zip(values, figures, strict=False)},
    "paired": {f"{a}_vs_{b}": describe("delta", of) for (a, b), of in zip(pairs, figures[len(values) :], strict=True)},
  }
