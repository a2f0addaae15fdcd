"""Slates from an upstream ranker's scores, and the cross-fitting that keeps a training slate's target out of that ranker's fit."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.splits import NextItem, cut_history, leave_one_out

SHORTEST_CUT = 3  # items of a history that gives a training request: the target, and two before it
SCORE_BATCH = 256  # requests scored at once: 256 x 100,000 items are 100 MB


@dataclasses.dataclass(frozen=True)
class RetrievedSlates:
  """The slates that hold their target, and how many requests were asked."""

  slates: tuple[Slate, ...]
  asked: int

  @property
  def recall(self) -> float:
    """Share of the requests whose target was retrieved."""
    return len(self.slates) / self.asked if self.asked else 0.0


def request_batches(examples: Sequence[NextItem], catalogue: Catalogue) -> Iterator[tuple[Sequence[NextItem], np.ndarray]]:
  """Yields (requests, history rows int32 `[B, H]`, oldest first, padded with -1 at the end); the last batch has rows without any item.

  B and H do not change, so that a jitted function compiles once. Raises DataError for an unknown item.
  """
  width = max((len(example.history) for example in examples), default=0)
  for start in range(0, len(examples), SCORE_BATCH):
    past = np.full((SCORE_BATCH, width), -1, np.int32)
    chunk = examples[start : start + SCORE_BATCH]
    for i, example in enumerate(chunk):
      past[i, : len(example.history)] = catalogue.to_rows(example.history)
    yield chunk, past


def check_scores(scores: np.ndarray, ranker: str) -> np.ndarray:
  """The scores, float32; raises DataError, naming the `ranker`, for one that is NaN, which has no place in an order."""
  scores = np.array(scores, np.float32)
  if np.isnan(scores).any():
    raise DataError(f"{ranker}: its scores are NaN, since its training diverged; lower its learning rate and train it again")
  return scores


def score_requests(
  scores_fn: Callable[[np.ndarray], np.ndarray], examples: Sequence[NextItem], catalogue: Catalogue, *, ranker: str = "the ranker"
) -> Iterator[tuple[Sequence[NextItem], np.ndarray, np.ndarray]]:
  """Yields (requests, their history rows `[b, H]`, scores of all items `[b, N]`) in batches.

  `scores_fn`: history rows as of `request_batches` -> scores `[B, N]`. `ranker`: what gives the scores, for the message. Raises DataError
  for an unknown item, and for a score that is NaN.
  """
  for chunk, past in request_batches(examples, catalogue):
    yield chunk, past[: len(chunk)], check_scores(np.asarray(scores_fn(past))[: len(chunk)], ranker)


def slates_from_scores(
  scores_fn: Callable[[np.ndarray], np.ndarray],
  examples: Sequence[NextItem],
  catalogue: Catalogue,
  *,
  size: int,
  mask_history: bool = True,
  ranker: str = "the ranker",
) -> RetrievedSlates:
  """The `size` best items of each request in score order, kept when the target is among them.

  `scores_fn`: history rows int32 `[B, H]` (oldest first, padded with -1 at the end) -> scores `[B, N]`; B and H do not change between
  calls, so a jitted function compiles once. With `mask_history` an item of the history is never a candidate. Raises DataError for an
  unknown item, a score that is NaN (naming the `ranker`), or a catalogue that cannot fill a slate.
  """
  width = max((len(example.history) for example in examples), default=0)
  check_slate_size(size, len(catalogue), width if mask_history else 0)
  if not examples:
    return RetrievedSlates((), 0)
  rows, scores = [], []
  for _, past, table in score_requests(scores_fn, examples, catalogue, ranker=ranker):
    if mask_history:
      which, step = np.nonzero(past >= 0)
      table[which, past[which, step]] = -np.inf
    top, best = _top(table, size)
    rows.append(top)
    scores.append(best)
  return slates_from_candidates(np.concatenate(rows), np.concatenate(scores), examples, catalogue)


def check_slate_size(size: int, items: int, masked: int) -> None:
  """Raises DataError for slates that cannot be filled from a catalogue of so many items, of which a history masks so many."""
  if size < 2 or items < size + masked:
    leaves = f", of which a history of {masked} leaves {max(items - masked, 0)}" if masked else ""
    raise DataError(f"size: {size} candidates cannot be drawn from {items} items{leaves}; choose 2 or more, and no more than there are")


def slates_from_candidates(rows: np.ndarray, scores: np.ndarray, examples: Sequence[NextItem], catalogue: Catalogue) -> RetrievedSlates:
  """Slates of candidate `rows [n, K]` with `scores [n, K]`, best first, one line a request; kept when the target is among them.

  For rankers that return lists, such as beams. A score of -inf marks an item that was not retrieved: it is no candidate, and the slate
  is shorter. A slate of one has nothing to re-order and is dropped. The history, timestamp and segment are the request's.
  """
  slates = []
  for line, line_scores, example in zip(rows, scores, examples, strict=True):
    retrieved = np.isfinite(line_scores)
    line, line_scores = line[retrieved], line_scores[retrieved]
    labels = (line == catalogue.to_rows([example.target])[0]).astype(int)
    if not labels.any() or len(line) < 2:
      continue
    slates.append(
      Slate(
        user=example.user,
        history=example.history,
        candidates=tuple(catalogue.items[row].id for row in line),
        labels=tuple(labels.tolist()),
        upstream_scores=tuple(line_scores.tolist()),
        timestamp=example.timestamp,
        last_time=example.last_time,
        segment=example.segment,
      )
    )
  return RetrievedSlates(tuple(slates), len(examples))


def cross_fit_examples(
  histories: Sequence[History], folds: int, seed: int, *, max_history: int, per_user: int = 3
) -> Iterator[tuple[tuple[History, ...], tuple[NextItem, ...]]]:
  """Yields, fold by fold, (histories to fit on, requests of the users left out): no ranker sees a target that it makes a slate of.

  Users are dealt to `folds` by `seed`. A user left out gives a request at each position with two or more items before it, the latest
  `per_user` of them. The others' events may be later in time than a request: a ranker fitted across users still looks ahead.
  Raises DataError for fewer users than folds.
  """
  fold_of = deal_folds(len(histories), folds, seed)
  for fold in range(folds):
    fitted = tuple(h for h, f in zip(histories, fold_of, strict=True) if f != fold)
    held_out = [h for h, f in zip(histories, fold_of, strict=True) if f == fold]
    # Each position is the test request of the history cut right after it.
    cuts = [cut_history(h, end) for h in held_out for end in range(max(SHORTEST_CUT, len(h.items) - per_user + 1), len(h.items) + 1)]
    yield fitted, leave_one_out(cuts, max_history).test


def deal_folds(users: int, folds: int, seed: int) -> np.ndarray:
  """The fold of each user, `[users]`, in equal shares; raises DataError for fewer users than folds."""
  if folds < 2 or users < folds:
    raise DataError(f"folds: {folds} for {users} users; use at least 2 and no more than there are users")
  return np.random.default_rng(seed).permutation(users) % folds


def _top(scores: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows and scores `[B, size]` of the largest, best first; equal scores by row."""
  picked = np.sort(np.argpartition(-scores, size - 1, axis=1)[:, :size], axis=1)
  best = np.take_along_axis(scores, picked, axis=1)
  order = np.argsort(-best, axis=1, kind="stable")
  return np.take_along_axis(picked, order, axis=1), np.take_along_axis(best, order, axis=1)


def slate_labels(slates: Sequence[Slate]) -> np.ndarray:
  """Labels `[n, K]` int32 in the upstream order, -1 where a slate is shorter than the longest."""
  return pad_rows([slate.labels for slate in slates]).astype(np.int32)


def label_shares(labels: np.ndarray) -> np.ndarray:
  """Labels `[n, K]` (-1 at padding) as shares of their slate's sum, 0 throughout where none is positive."""
  gains = np.maximum(labels, 0)
  return np.asarray(gains / np.maximum(gains.sum(axis=1, keepdims=True), 1))


def pad_rows(rows: Sequence[Sequence[float]], *, fill: float = -1, left: bool = False) -> np.ndarray:
  """Ragged lists as `[n, longest]`, filled with `fill` behind them (or before them with `left`)."""
  width = max((len(row) for row in rows), default=0)
  out = np.full((len(rows), width), fill)
  for i, row in enumerate(rows):
    out[i, width - len(row) if left else 0 : width if left else len(row)] = row
  return out


def pad_histories(histories: Sequence[Sequence[int] | np.ndarray], length: int) -> np.ndarray:
  """The last `length` rows of each history `[n, length]`, -1 behind them."""
  rows = np.full((len(histories), length), -1, np.int32)
  for row, history in zip(rows, histories, strict=True):
    latest = history[-length:]
    row[: len(latest)] = latest
  return rows


def latest_rows(histories: np.ndarray, length: int) -> np.ndarray:
  """The last `length` rows of histories `[B, H]` that have -1 behind them, `[B, length]`, likewise."""
  return pad_histories([history[history >= 0] for history in histories], length)
