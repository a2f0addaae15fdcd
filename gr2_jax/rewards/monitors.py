"""Per-batch monitors of reward hacking; each is a Metric, so microbatches and hosts add up exactly."""

import jax
import jax.numpy as jnp

from gr2_jax.language.answers import ERROR_KINDS
from gr2_jax.rewards.verifiable import RewardTerms
from gr2_jax.training.metric import Metric


def monitor_answers(rewards: RewardTerms, rankings: jax.Array, shown: jax.Array, lengths: jax.Array) -> dict[str, Metric]:
  """Monitors of a batch of groups, computed on the device.

  rewards of rankings `[P, G, K]`, shown `[P, K]`, completion lengths `[P, G]` in tokens.
  Rates of copies, Kendall tau and the top-1 share by slot are over valid answers (`valid_rate` says how many those are);
  `near_identity_rate` includes copies, and is 1 by construction for slates of two. `top1_share/slot_S` is the share
  of answers whose first choice stood at slot S: a flat profile, or that of the targets, is healthy; a peak at slot 0 is copying.
  """
  terms, valid = rewards.terms, rewards.format
  answered = jnp.sum(valid)

  def over_answers(x: jax.Array) -> Metric:
    return Metric(jnp.sum(x * valid), answered)

  first_slot = shown[:, None, :] == rankings[..., :1]  # [P, G, slot]; an invalid answer's -1 must match no padded slot
  shares = jnp.sum(first_slot * valid[..., None], axis=(0, 1))
  metrics = {
    "reward": Metric.of(rewards.total),
    "rank_reward": Metric.of(rewards.rank_raw),
    "valid_rate": Metric.of(valid),
    "recall@1": Metric.of(terms.recall[..., 0]),
    "promotion": over_answers(terms.promotion),
    "identity_rate": over_answers(jnp.maximum(terms.identity_to_shown, terms.identity_to_upstream)),
    "near_identity_rate": over_answers(jnp.maximum(terms.near_identity_to_shown, terms.near_identity_to_upstream)),
    "kendall_tau_to_shown": over_answers(terms.tau_to_shown),
    "kendall_tau_to_upstream": over_answers(terms.tau_to_upstream),
    "completion_length": Metric.of(lengths),
  }
  return metrics | {f"top1_share/slot_{s}": Metric(shares[s], answered) for s in range(shown.shape[-1])}


def monitor_errors(codes: jax.Array) -> dict[str, Metric]:
  """Share of answers by error kind; `codes [...]` are places in `language.answers.VERDICTS`, 0 where the answer is valid."""
  return {f"error/{kind}": Metric.of(codes == code) for code, kind in enumerate(ERROR_KINDS, start=1)}
