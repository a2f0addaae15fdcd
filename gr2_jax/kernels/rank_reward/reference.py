"""What the ranking-reward kernel computes, in plain jnp: the specification, and the path on CPU.

Everything rests on the rank of each candidate (0 = first) in an order. Given the ranks, the terms are sums over candidates and
the same functions serve this file and the kernel; the two differ in how they get the ranks. Here an order is read by one
scatter; the kernel, which can neither scatter nor sort, walks through it.

An order is a list, so ranks cannot tie; of a candidate that is listed twice the first place counts. Equal labels are put in the
order of the candidate index in the ideal order, which no metric can see.

A slate of n valid candidates may stand in a row of K > n; `mask` says which candidates count, and ranks are counted
among those alone, wherever the others stand in the orders.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.kernels.rank_reward.conditions import EQUAL, Earned, find_condition

DIVISORS = ("std", "mean", "none")  # of advantages
# Defaults of the group advantages: deviations are divided by no less than the floor, and groups of less raw spread are dropped.
STD_FLOOR = 1e-4
MIN_RAW_STD = 1e-6
# Up to here the ideal order is cheaper found by counting pairs than by XLA's sort, on a CPU.
SHORT_LIST = 64


@dataclasses.dataclass(frozen=True)
class RankRewardOptions:
  """The static choices: metric cut-offs, gain of NDCG, and how the terms make up the reward.

  `rank`: `promotion` (v1), `auc` (Eq 5) or `ndcg` (Eq 6). `condition`: a name in `conditions.CONDITIONS`.
  `alpha`: weight of the format term. `invalid`: reward of an answer that is no full permutation. Raises ValueError for an unknown choice.
  """

  cutoffs: tuple[int, ...] = (1, 3, 5, 10)
  gain: Literal["exponential", "linear"] = "exponential"
  rank: Literal["promotion", "auc", "ndcg"] = "auc"
  condition: str = "relative"
  alpha: float = 0.1
  invalid: float = -1.0

  def __post_init__(self) -> None:
    choices = {"gain": ("exponential", "linear"), "rank": ("promotion", "auc", "ndcg")}
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
    find_condition(self.condition)
    if any(k < 1 for k in self.cutoffs):
      raise ValueError(f"cutoffs: {self.cutoffs} must be positive")


class RankTerms(NamedTuple):
  """Everything that one ranking earns; float32 `[N]` unless stated. Every metric of an invalid answer is 0.

  A slate without positives: recall, ndcg, mrr, auc and promotion are 0. A slate of positives only: auc is 1, no order of it
  can be wrong. Neither is ever NaN, and neither tells rankings apart.
  """

  valid: jax.Array  # the format term Ω: 1 for a full permutation of the valid candidates, else 0
  recall: jax.Array  # [N, len(cutoffs)]
  ndcg: jax.Array  # [N, len(cutoffs)]
  mrr: jax.Array
  auc: jax.Array  # Eq 5, over pairs of a positive and a negative
  ndcg_reward: jax.Array  # Eq 6: NDCG of the whole list
  promotion: jax.Array  # v1: (upstream rank - rank) / n of the target, the first in upstream order of the best label
  identity_to_shown: jax.Array  # 1 where the answer copies the order it was shown
  identity_to_upstream: jax.Array
  near_identity_to_shown: jax.Array  # 1 where at most two candidates stand elsewhere: a copy, or one swap of any two
  near_identity_to_upstream: jax.Array
  tau_to_shown: jax.Array  # Kendall tau in [-1, 1]
  tau_to_upstream: jax.Array
  rank_reward: jax.Array  # the raw ranking reward, by which groups are filtered; `invalid` where the answer is invalid
  reward: jax.Array  # what the condition makes of it, before overlong shaping


class SlateTerms(NamedTuple):
  """What all rankings of a slate share; sums over candidates keep their axis, so that `[K]` and `[1]` broadcast."""

  mask: jax.Array
  positive: jax.Array
  gain: jax.Array
  target: jax.Array  # the candidate that promotion follows
  size: jax.Array  # valid candidates, float32
  shown_rank: jax.Array
  upstream_rank: jax.Array
  ideal_dcgs: tuple[jax.Array, ...]  # one a cut-off; the last is that of the whole list


def _sum(x: jax.Array, where: jax.Array, axis: int) -> jax.Array:
  return jnp.sum(jnp.where(where, x, 0), axis=axis, keepdims=True).astype(jnp.float32)


def count(flags: jax.Array, axis: int) -> jax.Array:
  """How many are true along `axis`, which is kept; float32."""
  return _sum(jnp.ones_like(flags, jnp.float32), flags, axis)


def _ratio(numerator: jax.Array, denominator: jax.Array, empty: float | jax.Array) -> jax.Array:
  return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), empty)


def compute_gain(labels: jax.Array, options: RankRewardOptions) -> jax.Array:
  """Gain of each label: 2^label - 1, or the label itself."""
  return jnp.exp2(labels) - 1.0 if options.gain == "exponential" else labels


def compute_dcgs(rank: jax.Array, gain: jax.Array, cutoffs: tuple[int, ...], axis: int) -> tuple[jax.Array, ...]:
  """Discounted cumulative gain at each cut-off; discount 1 / log2(rank + 2) for ranks from 0."""
  discounted = gain / jnp.log2(rank.astype(jnp.float32) + 2.0)
  return tuple(_sum(discounted, rank < cutoff, axis) for cutoff in cutoffs)


def _compute_auc(rank: jax.Array, slate: SlateTerms, axis: int) -> jax.Array:
  """Eq 5: the share of (positive, negative) pairs in which the positive stands first.

  A negative at rank r stands behind r candidates; taking off the pairs of two negatives leaves those with a positive in front
  (the rank-sum form of Mann and Whitney: exact, and linear in K).
  """
  negative = slate.mask & ~slate.positive
  negatives, positives = count(negative, axis), count(slate.positive, axis)
  right = _sum(rank, negative, axis) - negatives * (negatives - 1) / 2
  return _ratio(right, positives * negatives, jnp.where(positives > 0, 1.0, 0.0))


def _compute_tau(discordant: jax.Array, slate: SlateTerms) -> jax.Array:
  """Kendall tau; 1 for a slate of fewer than two candidates, which has nothing to disagree on."""
  return 1.0 - 2.0 * _ratio(discordant, slate.size * (slate.size - 1) / 2, 0.0)


def _compute_rank_rewards(rank: jax.Array, slate: SlateTerms, options: RankRewardOptions, axis: int) -> dict[str, jax.Array]:
  """The three ranking rewards of an order."""
  moved = _sum(slate.upstream_rank - rank, slate.target, axis)
  (dcg,) = compute_dcgs(rank, slate.gain, (slate.mask.shape[axis],), axis)
  return {
    "promotion": _ratio(moved, slate.size, 0.0),
    "auc": _compute_auc(rank, slate, axis),
    "ndcg": _ratio(dcg, slate.ideal_dcgs[-1], 0.0),
  }


def _combine(
  options: RankRewardOptions,
  valid: jax.Array,
  earned: jax.Array,
  upstream_earned: jax.Array,
  best: jax.Array | float,
  copied: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """(raw ranking reward, reward) under the condition; `best` is what the best order would earn."""
  improved = earned > upstream_earned + EQUAL
  kept_best = (upstream_earned >= best - EQUAL) & (earned >= best - EQUAL)
  raw, paid, credit = find_condition(options.condition).rule(Earned(earned, upstream_earned, best, copied, improved, kept_best))
  reward = paid + jnp.where(credit, options.alpha, 0.0)
  return jnp.where(valid, raw, options.invalid), jnp.where(valid, reward, options.invalid)


def read_slate(
  labels: jax.Array,
  mask: jax.Array,
  shown_rank: jax.Array,
  upstream_rank: jax.Array,
  ideal_dcgs: tuple[jax.Array, ...],
  options: RankRewardOptions,
  axis: int,
) -> SlateTerms:
  """Gathers what the rankings of a slate share. `labels` float32 with 0 where `mask` is False."""
  positive = labels > 0
  best_label = positive & (labels == jnp.max(labels, axis=axis, keepdims=True))
  beyond = mask.shape[axis]
  first_best = jnp.min(jnp.where(best_label, upstream_rank, beyond), axis=axis, keepdims=True)
  return SlateTerms(
    mask=mask,
    positive=positive,
    gain=compute_gain(labels, options),
    target=best_label & (upstream_rank == first_best),
    size=count(mask, axis),
    shown_rank=shown_rank,
    upstream_rank=upstream_rank,
    ideal_dcgs=ideal_dcgs,
  )


def score(
  rank: jax.Array, valid: jax.Array, discordant: tuple[jax.Array, jax.Array], slate: SlateTerms, options: RankRewardOptions, axis: int
) -> RankTerms:
  """All terms of a ranking from the ranks of its candidates; recall and ndcg are tuples, one entry a cut-off.

  `discordant`: pairs of candidates that stand the other way round in the shown and in the upstream order.
  """
  earned = _compute_rank_rewards(rank, slate, options, axis)
  upstream_earned = _compute_rank_rewards(slate.upstream_rank, slate, options, axis)
  # No order earns more than 1 by Eq 5 and 6; a promotion can at most bring the target to the front.
  best = _ratio(_sum(slate.upstream_rank, slate.target, axis), slate.size, 0.0) if options.rank == "promotion" else 1.0

  from_shown = count((rank != slate.shown_rank) & slate.mask, axis)
  from_upstream = count((rank != slate.upstream_rank) & slate.mask, axis)
  copied = (from_shown == 0) | (from_upstream == 0)
  raw, reward = _combine(options, valid, earned[options.rank], upstream_earned[options.rank], best, copied)

  def if_valid(x: jax.Array) -> jax.Array:
    return jnp.where(valid, x.astype(jnp.float32), 0.0)

  positives = count(slate.positive, axis)
  dcgs = compute_dcgs(rank, slate.gain, options.cutoffs, axis)
  # A tuple by cut-off until `stack_cutoffs` makes an array of it: Pallas cannot stack.
  return RankTerms(
    valid=valid.astype(jnp.float32),
    recall=tuple(if_valid(_ratio(count(slate.positive & (rank < k), axis), positives, 0.0)) for k in options.cutoffs),  # type: ignore[arg-type]
    ndcg=tuple(if_valid(_ratio(dcg, ideal, 0.0)) for dcg, ideal in zip(dcgs, slate.ideal_dcgs[:-1], strict=True)),  # type: ignore[arg-type]
    mrr=if_valid(jnp.max(jnp.where(slate.positive, 1.0 / (rank.astype(jnp.float32) + 1.0), 0.0), axis=axis, keepdims=True)),
    auc=if_valid(earned["auc"]),
    ndcg_reward=if_valid(earned["ndcg"]),
    promotion=if_valid(earned["promotion"]),
    identity_to_shown=if_valid(from_shown == 0),
    identity_to_upstream=if_valid(from_upstream == 0),
    near_identity_to_shown=if_valid(from_shown <= 2),
    near_identity_to_upstream=if_valid(from_upstream <= 2),
    tau_to_shown=if_valid(_compute_tau(discordant[0], slate)),
    tau_to_upstream=if_valid(_compute_tau(discordant[1], slate)),
    rank_reward=raw,
    reward=reward,
  )


def normalise_groups(
  rewards: jax.Array,
  raw_rewards: jax.Array,
  *,
  std_floor: float,
  min_raw_std: float,
  divide_by: str,
  group: int,
  axis: int,
) -> tuple[jax.Array, jax.Array]:
  """Advantages of rewards whose groups stand along `axis`, and which groups to keep (that axis is 1 there).

  What `objectives.advantages.group_advantages` documents. Where the axis is padded, a group is its first `group` places.
  """
  member = jax.lax.broadcasted_iota(jnp.int32, rewards.shape, axis % rewards.ndim)

  def centre(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The first member is subtracted before the mean is taken, so equal rewards give deviations of exactly 0, where the plain mean
    # would leave rounding noise that a small standard-deviation floor blows up.
    shifted = x - _sum(x, member == 0, axis)
    deviation = shifted - _sum(shifted, member < group, axis) / group
    return deviation, jnp.sqrt(_sum(deviation**2, member < group, axis) / group)

  deviation, std = centre(rewards)
  _, raw_std = centre(raw_rewards)
  keep = (raw_std >= min_raw_std) & jnp.isfinite(std)
  if divide_by == "std":
    deviation /= jnp.maximum(std, std_floor)
  elif divide_by == "mean":
    deviation /= jnp.maximum(_sum(rewards, member < group, axis) / group, std_floor)
  elif divide_by != "none":
    raise ValueError(f"divide_by: {divide_by!r} is not known; choose {', '.join(DIVISORS)}")
  return jnp.where(keep & (member < group), deviation, 0.0), keep


# What follows gets the ranks: the part that the kernel does its own way.


def _read_order(order: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Ranks `[N, K]` of the candidates in lists `[N, K]` of candidate indices, and `[N, 1]` whether each valid one is listed exactly once.

  Masked and unlisted candidates get rank K.
  """
  rows, size = order.shape
  inside = (order >= 0) & (order < size)
  listed = inside & jnp.take_along_axis(mask, jnp.where(inside, order, 0), axis=-1, mode="clip")
  place = jnp.cumsum(listed, axis=-1) - 1
  unlisted = jnp.full(order.shape, size)
  rank = unlisted.at[jnp.arange(rows)[:, None], jnp.where(listed, order, size)].min(place, mode="drop")
  found = jnp.all((rank < size) | ~mask, axis=-1, keepdims=True)
  return rank, found & (jnp.sum(listed, axis=-1, keepdims=True) == jnp.sum(mask, axis=-1, keepdims=True))


def _count_candidates(before: Callable[[jax.Array | int], jax.Array], size: int) -> jax.Array:
  """For each candidate `[N, K]`, how many j of K have `before(j)`: no pairs in memory, and unrolled, which short lists gain by."""
  body = lambda j, total: total + before(j).astype(jnp.int32)
  return jax.lax.fori_loop(1, size, body, before(0).astype(jnp.int32), unroll=8)


def _column(x: jax.Array, j: jax.Array | int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, j, 1, axis=-1)


def _count_discordant(rank: jax.Array, other: jax.Array) -> jax.Array:
  behind = _count_candidates(lambda j: (_column(rank, j) < rank) & (_column(other, j) > other), rank.shape[-1])
  return jnp.sum(behind, axis=-1, keepdims=True).astype(jnp.float32)


def _compute_ideal_dcgs(labels: jax.Array, options: RankRewardOptions) -> tuple[jax.Array, ...]:
  size = labels.shape[-1]
  cutoffs = (*options.cutoffs, size)
  gain = compute_gain(labels, options)
  if size > SHORT_LIST:

    def ideal(cutoff: int) -> jax.Array:
      best = jax.lax.top_k(gain, min(cutoff, size))[0]
      return compute_dcgs(jnp.arange(best.shape[-1]), best, (cutoff,), axis=-1)[0]

    return tuple(ideal(cutoff) for cutoff in cutoffs)
  index = jnp.arange(size)
  above = lambda j: (_column(labels, j) > labels) | ((_column(labels, j) == labels) & (j < index))
  return compute_dcgs(_count_candidates(above, size), gain, cutoffs, axis=-1)


def rank_terms(
  rankings: jax.Array, labels: jax.Array, shown: jax.Array, upstream: jax.Array, mask: jax.Array, options: RankRewardOptions
) -> RankTerms:
  """All terms of N rankings in one pass; what the caller leaves unused is not computed under jit.

  rankings `[N, K]` candidate indices best first (all -1 where the answer is invalid; anything that is not a full
  permutation of the valid candidates counts as invalid), labels `[N, K]` by candidate (0 none, positive otherwise),
  shown `[N, K]` the candidate at each slot, upstream `[N, K]` the upstream ranking, mask `[N, K]` valid candidates.
  Shown and upstream must list every valid candidate; nothing is promised of terms that compare with an order that does not.
  Sources: Eq 5-7 of GR2 and v1's rule; recall, ndcg and mrr as in rax.
  """
  mask = mask.astype(bool)
  labels = jnp.where(mask, labels, 0).astype(jnp.float32)
  rank, valid = _read_order(rankings, mask)
  shown_rank, _ = _read_order(shown, mask)
  upstream_rank, _ = _read_order(upstream, mask)
  slate = read_slate(labels, mask, shown_rank, upstream_rank, _compute_ideal_dcgs(labels, options), options, axis=-1)
  discordant = (_count_discordant(rank, shown_rank), _count_discordant(rank, upstream_rank))
  return stack_cutoffs(jax.tree.map(lambda x: x[..., 0], score(rank, valid, discordant, slate, options, axis=-1)))


def group_rank_terms(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array,
  upstream: jax.Array,
  mask: jax.Array,
  shaping: jax.Array,
  *,
  options: RankRewardOptions,
  **normalisation: Any,
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """Terms `[P, G]` of the rankings `[P, G, K]` of P slates `[P, K]`, advantages `[P, G]` of reward + shaping `[P, G]`, and keep `[P]`.

  `normalisation`: `std_floor`, `min_raw_std` and `divide_by` of `normalise_groups`.
  """
  prompts, group, size = rankings.shape
  # A slate is repeated for each of its rankings: a division by a shared number may be compiled into a product, and a ranking must get
  # the same bits alone and in a group.
  labels, shown, upstream, mask = (jnp.repeat(x, group, axis=0) for x in (labels, shown, upstream, mask))
  terms = rank_terms(rankings.reshape(-1, size), labels, shown, upstream, mask, options)
  terms = jax.tree.map(lambda x: x.reshape(prompts, group, *x.shape[1:]), terms)
  return terms, *shaped_advantages(terms, shaping, **normalisation)


def shaped_advantages(terms: RankTerms, shaping: jax.Array, **normalisation: Any) -> tuple[jax.Array, jax.Array]:
  """Advantages `[P, G]` and keep `[P]` of finished terms: optimised is reward + shaping, groups are filtered on the raw reward."""
  rewards, raw = terms.reward + shaping.astype(jnp.float32), terms.rank_reward
  advantages, keep = normalise_groups(rewards, raw, group=raw.shape[-1], axis=-1, **normalisation)
  return advantages, keep[..., 0]


def stack_cutoffs(terms: RankTerms) -> RankTerms:
  """Puts the cut-offs of recall and ndcg on a last axis."""
  return terms._replace(recall=jnp.stack(terms.recall, axis=-1), ndcg=jnp.stack(terms.ndcg, axis=-1))
