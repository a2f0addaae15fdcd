"""The reward that an answer earns by being right, and the conditions that keep copying from paying."""

import dataclasses
from typing import Literal, NamedTuple

import jax

from gr2_jax.kernels.rank_reward import api
from gr2_jax.kernels.rank_reward.api import RankRewardOptions, RankTerms

_ALPHA = {"naive": 0.2, "v1": 0.2, "eq7": 0.1, "relative": 0.1, "improving": 0.1}
# Eq 7 gives an invalid answer no rank credit. Where rewards fall below 0, as v1's promotion and the relative reward do, 0 would
# make giving no answer better than a bad one, so v1's -1 stands.
_INVALID = {"naive": -1.0, "v1": -1.0, "eq7": 0.0, "relative": -1.0, "improving": 0.0}


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Which ranking reward, under which condition.

  `rank`: `promotion` of the target by v1, `auc` (Eq 5, binary labels) or `ndcg` (Eq 6, graded labels).
  `condition`, with f the format term, R the ranking reward, R_u that of the upstream order:
    `naive`     R + alpha f
    `v1`        alpha only where R > 0, or where the upstream order is best and was kept so
    `eq7`       R + alpha f, but a copy of the shown or of the upstream order that is not best earns alpha alone
    `relative`  R - R_u, and alpha where that is > 0, or where the upstream order is best and was kept so
    `improving` alpha f, and R only where R > R_u, or where the upstream order is best and was kept so: Eq 7's rule for copies, held against
                every answer that is no better than a copy
  `alpha` and `invalid` (the reward of an invalid answer) default to the condition's published values: 0.2 and -1 for v1 and
  naive, 0.1 and 0 for Eq 7 and improving; the relative reward takes 0.1 and -1.
  """

  rank: Literal["promotion", "auc", "ndcg"] = "auc"
  condition: Literal["naive", "v1", "eq7", "relative", "improving"] = "relative"
  alpha: float | None = None
  invalid: float | None = None
  gain: Literal["exponential", "linear"] = "exponential"

  def to_options(self) -> RankRewardOptions:
    """The kernel's static options; raises ValueError for an unknown choice."""
    return RankRewardOptions(
      cutoffs=(1, 3),
      gain=self.gain,
      rank=self.rank,
      condition=self.condition,
      alpha=_ALPHA.get(self.condition, 0.0) if self.alpha is None else self.alpha,
      invalid=_INVALID.get(self.condition, 0.0) if self.invalid is None else self.invalid,
    )


class RewardTerms(NamedTuple):
  """What the answers of each group earn, `[P, G]`; `rank_raw` is what filters groups, `total` what is optimised."""

  total: jax.Array
  rank_raw: jax.Array
  format: jax.Array
  advantages: jax.Array  # `total` normalised within the group; 0 in a group that is not kept
  keep: jax.Array  # [P]: whether the group's raw rewards vary
  terms: RankTerms  # everything else: copies, Kendall tau, metrics


def compute_rewards(
  config: RewardConfig,
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array,
  upstream: jax.Array | None = None,
  mask: jax.Array | None = None,
  shaping: jax.Array | None = None,
  *,
  divide_by_std: bool = True,
  keep_all: bool = False,
) -> RewardTerms:
  """Rewards and advantages of the answers in each group, in one pass over them.

  rankings `[P, G, K]` candidate indices best first (all -1 where invalid), labels `[P, K]` by candidate, shown `[P, K]` the
  candidate at each slot, upstream `[P, K]` (default: the candidate indices' own order), mask `[P, K]` (default: all valid),
  shaping `[P, G]` (default 0) is added to what is optimised, not to what filters groups.
  `divide_by_std` as in `objectives.advantages.group_advantages`; `keep_all` filters no group, as GRPO does without dynamic sampling.
  Source: GR2 section 7, v1's rule and Eq 5-7; the relative and the improving reward are ours.
  """
  terms, advantages, keep = api.group_rank_terms(
    rankings,
    labels,
    shown,
    upstream,
    mask,
    shaping,
    options=config.to_options(),
    min_raw_std=0.0 if keep_all else api.MIN_RAW_STD,
    divide_by_std=divide_by_std,
  )
  total = terms.reward if shaping is None else terms.reward + shaping
  return RewardTerms(total, terms.rank_reward, terms.valid, advantages, keep, terms)
