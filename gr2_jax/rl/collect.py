"""Groups that carry a signal, gathered over rounds into one batch of fixed size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gr2_jax.rewards.judge import Judgement
from gr2_jax.rollout.generate import Rollout
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.training.metric import Metric, merge


class Round(NamedTuple):
  """Groups that were rolled out together, what their answers are worth, and the weights `[P]` of their slates (None: all alike)."""

  rollout: Rollout
  judgement: Judgement
  weights: Any = None


def collect_groups(
  play_round: Callable[[int], Round],
  *,
  num_prompts: int,
  max_rounds: int,
  min_filled: float = 1.0,
  mask_truncated: bool = False,
  fetch: Callable[[Any], Any] = jax.device_get,
  gather: Callable[[np.int32], np.ndarray] = multihost_utils.process_allgather,
) -> tuple[GroupBatch, dict[str, Metric]]:
  """Play rounds until `num_prompts` groups are kept, for at most `max_rounds` rounds (DAPO's dynamic sampling).

  `play_round(number)` draws prompts and gives their groups with what these are worth, in the same shapes each round, on the device or not;
  rounds are numbered from 0.
  Returns a batch of exactly `num_prompts` groups on the host: kept groups first, in order, then groups with `keep` False. Kept groups
  beyond `num_prompts` are dropped, since they would be off-policy by the next batch, and counted as surplus.
  `min_filled`: share of the batch that is enough, since a whole round for its last groups can cost more than they are worth; places left
  over weigh nothing, and the loss is exact all the same. A judge that keeps every group (GRPO) fills the batch in one round.
  `mask_truncated`: completions cut off at the limit are not learnt from.

  Each of several processes fills a share of its own, of `num_prompts` groups; `fetch` brings its rows of device arrays to the host. All
  go on until the last of them is full: a decision that they take alike, from the counts that `gather` (number -> the numbers of all
  processes, stacked) brings together.

  Metrics: those of the judgements; `filled_fraction` and `surplus_fraction` of this process's batch; `rounds`; and over everything
  rolled out, by all processes,
  `kept_fraction`, `all_invalid_fraction` and `all_equal_fraction` (groups without a signal, with no valid answer, or with some, of equal
  reward), `valid_rate`, `reward`, `truncated_rate`, `completion_length`, `sampling_entropy` and `occupancy` (the share of rows x decoding
  steps that wrote a token). Groups of one, and of a slate whose order cannot matter (no positives, or nothing else), are among the equal
  ones.
  Raises ValueError for a reward that is not finite, and when rounds differ in shape.
  """
  parts: list[GroupBatch] = []
  round_metrics: list[dict[str, Metric]] = []
  kept = 0
  for number in range(max_rounds):
    played = play_round(number)
    judgement = played.judgement
    part, metrics = _form_groups(*played, mask_truncated)
    if parts and jax.tree.map(jnp.shape, part) != jax.tree.map(jnp.shape, parts[0]):
      raise ValueError(
        f"round {number + 1} has prompts {part.prompts.shape} and completions {part.completions.shape}, the first had "
        f"{parts[0].prompts.shape} and {parts[0].completions.shape}; give every round the same prompts, padded to one length"
      )
    parts.append(part)
    round_metrics.append(judgement.monitors | metrics)
    # All that a round sends to the host: whether to go on is decided there.
    rewards, keep = fetch((judgement.rewards, part.keep))
    if not np.isfinite(rewards).all():
      prompt, member = np.argwhere(~np.isfinite(rewards))[0]
      raise ValueError(f"rewards[{prompt}, {member}] is {rewards[prompt, member]}; a reward must be finite for every answer")
    kept += int(keep.sum())
    if np.min(gather(np.int32(kept))) >= min_filled * num_prompts:
      break
  # The batch is put together on the host: a gather on the devices would compile for each number of rounds, and move rows between
  # processes that each fill a share of their own. These are the rollouts' tokens and numbers, small beside what made them.
  pool = jax.tree.map(lambda *arrays: np.concatenate(arrays), *fetch(parts))
  # Stable: kept groups in the order they came. Where all rounds together are short of groups, some fill several places, at weight 0.
  order = np.resize(np.argsort(~pool.keep, kind="stable"), max(num_prompts, len(pool.keep)))[:num_prompts]
  batch = jax.tree.map(lambda array: array[order], pool)
  batch = batch.replace(keep=batch.keep & (np.arange(num_prompts) < kept))
  metrics = merge(round_metrics) | {
    "filled_fraction": Metric(float(batch.keep.sum()), float(num_prompts)),
    "surplus_fraction": Metric(float(max(kept - num_prompts, 0)), float(num_prompts)),
    "rounds": Metric(float(len(parts)), 1.0),
  }
  return batch, metrics


@functools.partial(jax.jit, static_argnames="mask_truncated")
def _form_groups(
  rollout: Rollout, judgement: Judgement, weights: jax.Array | None, mask_truncated: bool
) -> tuple[GroupBatch, dict[str, Metric]]:
  """One round's groups, and its counts."""
  learnt = rollout.finished[..., None] if mask_truncated else True
  batch = GroupBatch(
    prompts=rollout.prompts,
    prompt_mask=rollout.prompt_mask,
    completions=rollout.completions,
    completion_mask=rollout.completion_mask & learnt,
    behaviour_logps=rollout.behaviour_logps,
    advantages=judgement.advantages,
    weights=jnp.ones(len(rollout.prompts)) if weights is None else weights,
    keep=judgement.keep,
  )
  silent, some_valid = jnp.all(judgement.advantages == 0, axis=-1), jnp.any(judgement.valid, axis=-1)
  return batch, {
    "kept_fraction": Metric.of(judgement.keep),
    "all_invalid_fraction": Metric.of(silent & ~some_valid),
    "all_equal_fraction": Metric.of(silent & some_valid),
    "valid_rate": Metric.of(judgement.valid),
    "reward": Metric.of(judgement.rewards),
    "truncated_rate": Metric.of(~rollout.finished),
    "completion_length": Metric.of(jnp.sum(rollout.completion_mask, axis=-1)),
    # The first token is drawn from the prompt, outside the decoding steps.
    "occupancy": Metric(jnp.sum(rollout.completion_mask[:, :, 1:], dtype=jnp.float32), jnp.sum(rollout.row_steps, dtype=jnp.float32)),
    "sampling_entropy": Metric.of(rollout.entropy, rollout.completion_mask),
  }
