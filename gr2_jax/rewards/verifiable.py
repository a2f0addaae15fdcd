"""The reward that an answer earns by being right, and the conditions that keep copying from paying."""

import dataclasses
from typing import Literal, NamedTuple

import jax

from gr2_jax.kernels.rank_reward import api
from gr2_jax.kernels.rank_reward.api import RankRewardOptions, RankTerms
from gr2_jax.kernels.rank_reward.conditions import CONDITIONS, find_condition
from gr2_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Which ranking reward, under which condition; the records of `kernels.rank_reward.conditions.CONDITIONS` say what each condition does
  and where it comes from. Raises ValueError.
  """

  rank: Literal["promotion", "auc", "ndcg"] = setting(
    "auc", "the ranking reward R of an answer: how far the target moved up (v1), AUC (Eq 5, binary labels) or NDCG (Eq 6, graded labels)"
  )
  condition: str = setting(
    "relative",
    "when R and the format term alpha are paid. naive: always, to copies too; v1: alpha only where R > 0 or a best upstream order is "
    "kept; eq7: a copy that is not best earns alpha alone; relative: R less that of the upstream order, alpha where this is above 0 or a "
    "best order is kept; improving: R only where it is above that of the upstream order or a best order is kept",
    choices=CONDITIONS.keys(),
  )
  alpha: float | None = setting(None, "weight of the format term; None: the condition's own", low=0)
  invalid: float | None = setting(None, "reward of an answer that is no full permutation; None: the condition's own")
  gain: Literal["exponential", "linear"] = setting("exponential", "what a label g counts in NDCG: 2^g - 1, or g itself")

  def __post_init__(self) -> None:
    check_settings(self)

  def to_options(self) -> RankRewardOptions:
    """The kernel's static options."""
    condition = find_condition(self.condition)
    return RankRewardOptions(
      cutoffs=(1, 3),
      gain=self.gain,
      rank=self.rank,
      condition=self.condition,
      alpha=condition.alpha if self.alpha is None else self.alpha,
      invalid=condition.invalid if self.invalid is None else self.invalid,
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
  divide_by: str = "std",
  keep_all: bool = False,
) -> RewardTerms:
  """Rewards and advantages of the answers in each group, in one pass over them.

  rankings `[P, G, K]` candidate indices best first (all -1 where invalid), labels `[P, K]` by candidate, shown `[P, K]` the
  candidate at each slot, upstream `[P, K]` (default: the candidate indices' own order), mask `[P, K]` (default: all valid),
  shaping `[P, G]` (default 0) is added to what is optimised, not to what filters groups.
  `divide_by` as in `objectives.advantages.group_advantages`; `keep_all` filters no group, as GRPO does without dynamic sampling.
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
    divide_by=divide_by,
  )
  total = terms.reward if shaping is None else terms.reward + shaping
  return RewardTerms(total, terms.rank_reward, terms.valid, advantages, keep, terms)
