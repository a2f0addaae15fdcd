"""What the ranking-reward kernel computes, in plain jnp: the specification, and the path on CPU.

Everything rests on the rank of each candidate (0 = first), found by comparing positions in pairs, so that a kernel can
follow the same steps as a loop over candidates with masked sums: no sort, no gather, no scatter. An order is a list, so
ranks cannot tie; the ideal order breaks ties between equal labels by candidate index, which no metric can see.

A slate of n valid candidates may stand in a row of K > n; `mask` says which candidates count, and ranks are counted
among those alone, wherever the others stand in the orders.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

# Rewards that differ by less are equal: two float32 sums of the same terms in another order differ by about 1e-7.
EQUAL = 1e-6


@dataclasses.dataclass(frozen=True)
class RankRewardOptions:
  """The static choices: metric cut-offs, gain of NDCG, and how the terms make up the reward.

  `rank`: `promotion` (v1), `auc` (Eq 5) or `ndcg` (Eq 6). `condition`: `naive` (sum of both terms), `v1`, `eq7`, `relative`.
  `alpha`: weight of the format term. `invalid`: reward of an answer that is no full permutation.
  """

  cutoffs: tuple[int, ...] = (1, 3, 5, 10)
  gain: Literal["exponential", "linear"] = "exponential"
  rank: Literal["promotion", "auc", "ndcg"] = "auc"
  condition: Literal["naive", "v1", "eq7", "relative"] = "relative"
  alpha: float = 0.1
  invalid: float = -1.0

  def __post_init__(self):
    choices = {"gain": ("exponential", "linear"), "rank": ("promotion", "auc", "ndcg"), "condition": ("naive", "v1", "eq7", "relative")}
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
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


class _Order(NamedTuple):
  rank: jax.Array  # [N, K] int32, by candidate; among valid candidates
  complete: jax.Array  # [N] whether each valid candidate occurs exactly once


def _read_order(order: jax.Array, mask: jax.Array) -> _Order:
  """Ranks of the candidates in a list of candidate indices `[N, K]`."""
  size = order.shape[-1]
  index = jnp.arange(size)
  stands = order[:, None, :] == index[None, :, None]  # [N, candidate, position]
  times = jnp.sum(stands, axis=-1)
  position = jnp.where(times > 0, jnp.sum(jnp.where(stands, index, 0), axis=-1), size)
  before = (position[:, None, :] < position[:, :, None]) & mask[:, None, :]
  return _Order(jnp.sum(before, axis=-1), jnp.all((times == 1) | ~mask, axis=-1))


def _count(flags: jax.Array) -> jax.Array:
  return jnp.sum(flags, axis=-1).astype(jnp.float32)


def _ratio(numerator: jax.Array, denominator: jax.Array, empty: float) -> jax.Array:
  return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), empty)


def _compute_auc(rank: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
  """Eq 5: the share of (positive, negative) pairs in which the positive stands first."""
  right = (rank[:, :, None] < rank[:, None, :]) & positive[:, :, None] & negative[:, None, :]
  pairs = _count(positive) * _count(negative)
  return _ratio(jnp.sum(right, axis=(-2, -1)).astype(jnp.float32), pairs, jnp.any(positive, axis=-1).astype(jnp.float32))


def _compute_ndcg(rank: jax.Array, ideal_rank: jax.Array, gain: jax.Array, cutoff: int) -> jax.Array:
  """Eq 6 cut off at `cutoff`; discount 1 / log2(rank + 2) for ranks from 0."""

  def dcg(r):
    return jnp.sum(jnp.where(r < cutoff, gain / jnp.log2(r.astype(jnp.float32) + 2.0), 0.0), axis=-1)

  return _ratio(dcg(rank), dcg(ideal_rank), 0.0)


def _compute_tau(rank: jax.Array, other: jax.Array, mask: jax.Array) -> jax.Array:
  """Kendall tau; 1 for a slate of fewer than two candidates, which has nothing to disagree on."""
  discordant = (rank[:, :, None] < rank[:, None, :]) & (other[:, :, None] > other[:, None, :]) & mask[:, :, None] & mask[:, None, :]
  n = _count(mask)
  return 1.0 - 2.0 * _ratio(jnp.sum(discordant, axis=(-2, -1)).astype(jnp.float32), n * (n - 1) / 2, 0.0)


def _compute_rank_rewards(rank, upstream_rank, target, labels, gain, ideal_rank, mask):
  """The three ranking rewards of one order: (promotion, auc, ndcg), each `[N]`."""
  moved = jnp.sum(jnp.where(target, upstream_rank - rank, 0), axis=-1).astype(jnp.float32)
  promotion = _ratio(moved, _count(mask), 0.0)
  positive = (labels > 0) & mask
  auc = _compute_auc(rank, positive, mask & ~positive)
  ndcg = _compute_ndcg(rank, ideal_rank, gain, rank.shape[-1])
  return {"promotion": promotion, "auc": auc, "ndcg": ndcg}


def _combine(options: RankRewardOptions, valid, earned, upstream_earned, best, copied):
  """(raw ranking reward, reward) under the condition; `best` is what the best order would earn."""
  if options.condition == "relative":
    # v1's rule generalised: format credit for an improvement, or for keeping an upstream order that cannot be improved.
    raw = earned - upstream_earned
    credit = (raw > EQUAL) | ((upstream_earned >= best - EQUAL) & (raw >= -EQUAL))
    reward = raw + options.alpha * credit
  else:
    raw = earned
    if options.condition == "naive":
      reward = raw + options.alpha
    elif options.condition == "v1":
      kept_best = (upstream_earned >= best - EQUAL) & (earned >= best - EQUAL)
      reward = raw + options.alpha * ((raw > EQUAL) | kept_best)
    else:
      reward = jnp.where(copied & (earned < best - EQUAL), 0.0, raw) + options.alpha
  return jnp.where(valid, raw, options.invalid), jnp.where(valid, reward, options.invalid)


def rank_terms(
  rankings: jax.Array, labels: jax.Array, shown: jax.Array, upstream: jax.Array, mask: jax.Array, options: RankRewardOptions
) -> RankTerms:
  """All terms of N rankings in one pass.

  rankings `[N, K]` candidate indices best first (all -1 where the answer is invalid; anything that is not a full
  permutation of the valid candidates counts as invalid), labels `[N, K]` by candidate (0 none, positive otherwise),
  shown `[N, K]` the candidate at each slot, upstream `[N, K]` the upstream ranking, mask `[N, K]` valid candidates.
  Sources: Eq 5-7 of GR2 and v1's rule; recall, ndcg and mrr as in rax.
  """
  mask = mask.astype(bool)
  labels = jnp.where(mask, labels, 0).astype(jnp.float32)
  gain = jnp.exp2(labels) - 1.0 if options.gain == "exponential" else labels
  positive = labels > 0
  index = jnp.arange(labels.shape[-1])

  order, valid = _read_order(rankings, mask)
  upstream_rank, _ = _read_order(upstream, mask)
  shown_rank, _ = _read_order(shown, mask)
  above = (labels[:, None, :] > labels[:, :, None]) | ((labels[:, None, :] == labels[:, :, None]) & (index[None, :] < index[:, None]))
  ideal_rank = jnp.sum(above & mask[:, None, :], axis=-1)

  best_label = positive & (labels == jnp.max(labels, axis=-1, keepdims=True))
  first_best = jnp.min(jnp.where(best_label, upstream_rank, labels.shape[-1]), axis=-1, keepdims=True)
  target = best_label & (upstream_rank == first_best)

  def rewards_of(rank):
    return _compute_rank_rewards(rank, upstream_rank, target, labels, gain, ideal_rank, mask)

  earned, upstream_earned = rewards_of(order), rewards_of(upstream_rank)
  # No order earns more than 1 by Eq 5 and 6; a promotion can at most bring the target to the front.
  target_rank = jnp.sum(jnp.where(target, upstream_rank, 0), axis=-1).astype(jnp.float32)
  best = _ratio(target_rank, _count(mask), 0.0) if options.rank == "promotion" else 1.0

  moved = {name: _count((order != other) & mask) for name, other in (("shown", shown_rank), ("upstream", upstream_rank))}
  copied = (moved["shown"] == 0) | (moved["upstream"] == 0)
  raw, reward = _combine(options, valid, earned[options.rank], upstream_earned[options.rank], best, copied)

  def if_valid(x):
    return jnp.where(valid, x, 0.0).astype(jnp.float32)

  positives = _count(positive)
  return RankTerms(
    valid=valid.astype(jnp.float32),
    recall=jnp.stack([if_valid(_ratio(_count(positive & (order < k)), positives, 0.0)) for k in options.cutoffs], axis=-1),
    ndcg=jnp.stack([if_valid(_compute_ndcg(order, ideal_rank, gain, k)) for k in options.cutoffs], axis=-1),
    mrr=if_valid(jnp.max(jnp.where(positive, 1.0 / (order + 1.0), 0.0), axis=-1)),
    auc=if_valid(earned["auc"]),
    ndcg_reward=if_valid(earned["ndcg"]),
    promotion=if_valid(earned["promotion"]),
    identity_to_shown=if_valid(moved["shown"] == 0),
    identity_to_upstream=if_valid(moved["upstream"] == 0),
    near_identity_to_shown=if_valid(moved["shown"] <= 2),
    near_identity_to_upstream=if_valid(moved["upstream"] <= 2),
    tau_to_shown=if_valid(_compute_tau(order, shown_rank, mask)),
    tau_to_upstream=if_valid(_compute_tau(order, upstream_rank, mask)),
    rank_reward=raw.astype(jnp.float32),
    reward=reward.astype(jnp.float32),
  )
