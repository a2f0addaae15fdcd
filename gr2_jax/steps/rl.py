"""Reinforcement learning on group rollouts: collect groups that carry a signal, then update by DAPO's loss on a shared-prefix forward."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import clipped_policy_loss
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.generate import Rollout, prefill
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.metric import Metric, merge
from gr2_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class RlConfig:
  """`clip_low`, `clip_high` bound the ratio to 1 - clip_low .. 1 + clip_high; `temperature` is that of the rollout (top-p cannot be
  told to the loss, and shows as a gap to the behaviour log-probabilities); `microbatches` cut the prompts to save memory, exactly.
  """

  clip_low: float = 0.2
  clip_high: float = 0.28
  temperature: float = 1.0
  microbatches: int = 1

  def __post_init__(self):
    if not self.temperature > 0:
      raise ValueError(f"temperature must be above 0 to learn from samples, got {self.temperature}: greedy answers have no gradient")
    if not (0 <= self.clip_low < 1 and self.clip_high >= 0):
      raise ValueError(f"clip_low must lie in [0, 1) and clip_high must not be negative, got {self.clip_low} and {self.clip_high}")
    if self.microbatches < 1:
      raise ValueError(f"microbatches must be at least 1, got {self.microbatches}")


@struct.dataclass
class RlBatch:
  """What an update reads of P groups: `prompts, prompt_mask [P, Lp]`; `completions, completion_mask, behaviour_logps [P, G, Lc]`;
  `advantages [P, G]`; `keep [P]`, False for groups that count neither in the loss nor in its denominator.
  """

  prompts: Any
  prompt_mask: Any
  completions: Any
  completion_mask: Any
  behaviour_logps: Any
  advantages: Any
  keep: Any


def completion_log_probs(
  decoder: Decoder, params, batch: RlBatch, temperature: float = 1.0, constraint: SlateConstraint | None = None
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy `[P, G, Lc]` (float32) of every completion token, each prompt computed once.

  The G completions of a prompt attend to its keys and values, through which their gradients flow back, so that values and gradients
  are those of G full sequences. The first token is predicted by the prompt's last hidden state, and the last token is not fed.
  With the `constraint` of the rollout, both are of the distribution over legal tokens.
  """
  num_prompts, group, length = batch.completions.shape
  rows = num_prompts * group
  last_hidden, prefix, prompt_lengths = prefill(decoder, params, batch.prompts, batch.prompt_mask)
  tokens = batch.completions.reshape(rows, length)
  hidden = jnp.repeat(last_hidden, group, axis=0)[:, None]
  if length > 1:
    positions = jnp.repeat(prompt_lengths, group)[:, None] + jnp.arange(length - 1)
    segments = batch.completion_mask.reshape(rows, length)[:, :-1].astype(jnp.int32)
    suffix, _ = decoder.apply({"params": params}, tokens[:, :-1], positions, segments, prefix=prefix)
    hidden = jnp.concatenate([hidden, suffix], axis=1)

  def to_logits(x, *state):
    logits = decoder.apply({"params": params}, x, method="logits")
    return constraint.apply(logits, *state) if state else logits

  extra = ()
  if constraint is not None:
    real = batch.completion_mask.reshape(rows, length) > 0
    extra = (constraint.replay(tokens, real, jnp.ones_like(tokens), max_new_tokens=length),)
  log_probs, entropy = token_log_probs(to_logits, hidden, tokens, *extra, temperature=temperature)
  return log_probs.reshape(batch.completions.shape), entropy.reshape(batch.completions.shape)


def _split(batch: RlBatch, parts: int) -> RlBatch:
  """Leading axis `[P, ...]` to `[parts, P / parts, ...]`, by strides: where P lies over devices each keeps its own prompts."""
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def make_rl_update(
  decoder: Decoder, optimizer: optax.GradientTransformation, config: RlConfig, constraint: SlateConstraint | None = None
) -> Callable:
  """Build `update(state, RlBatch) -> (state, metrics)`: one gradient step of the clipped token-mean loss, with no KL and no reference pass.

  The token mean is over the kept groups' tokens of the whole batch, whatever the microbatches and devices. A batch without any
  kept token leaves parameters and optimizer as they were (and reports no loss). Call it several times on a rollout batch, or on
  minibatches over P, for several gradient steps. Compile it by `training.mesh.jit_update`, which donates the state and sets the shardings.
  """

  def loss_terms(params, batch: RlBatch, total_tokens):
    log_probs, entropy = completion_log_probs(decoder, params, batch, config.temperature, constraint)
    weights = _weights(batch)
    loss = clipped_policy_loss(
      log_probs, batch.behaviour_logps, batch.advantages, weights, clip_low=config.clip_low, clip_high=config.clip_high
    )
    metrics = {name: Metric(*pair) for name, pair in loss.diagnostics.items()}
    metrics |= {"loss": Metric(loss.loss_sum, loss.token_count), "entropy": Metric.of(jax.lax.stop_gradient(entropy), weights)}
    return loss.loss_sum / jnp.maximum(total_tokens, 1), metrics

  gradient = jax.grad(loss_terms, has_aux=True)

  def update(state: TrainState, batch: RlBatch):
    total_tokens = _weights(batch).sum(dtype=jnp.float32)
    if config.microbatches == 1:
      grads, metrics = gradient(state.params, batch, total_tokens)
    else:

      def accumulate(grads, part):
        part_grads, part_metrics = gradient(state.params, part, total_tokens)
        return jax.tree.map(jnp.add, grads, part_grads), part_metrics

      zeros = jax.tree.map(jnp.zeros_like, state.params)
      grads, metrics = jax.lax.scan(accumulate, zeros, _split(batch, config.microbatches))
      metrics = jax.tree.map(lambda x: x.sum(axis=0), metrics)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Without a kept token the gradient is 0, but Adam's momentum and weight decay would move the parameters all the same.
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(total_tokens > 0, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    metrics["grad_norm"] = Metric(optax.global_norm(grads), jnp.ones(()))
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update


def _weights(batch: RlBatch) -> jax.Array:
  return batch.completion_mask * batch.keep[:, None, None]


class Judgement(NamedTuple):
  """Rewards of a rollout's answers, all `[P, G]`: `rewards` as optimised, `raw_rewards` the ranking reward before format credit and
  shaping, `valid` whether the answer is a full permutation.
  """

  rewards: Any
  raw_rewards: Any
  valid: Any


def collect_groups(
  next_prompts: Callable[[], Any],
  rollout_fn: Callable[[Any], Rollout],
  judge_fn: Callable[[Any, Rollout], Judgement],
  *,
  num_prompts: int,
  max_rounds: int,
) -> tuple[RlBatch, dict[str, Metric]]:
  """Roll out until `num_prompts` groups vary in their raw ranking reward, for at most `max_rounds` rounds (DAPO's dynamic sampling).

  `next_prompts()` gives a round's prompts in any form, `rollout_fn(prompts)` and `judge_fn(prompts, rollout)` their groups, in the same
  shapes each round. Returns a batch of exactly `num_prompts` groups on the host: kept groups first, in order, then groups with `keep`
  False. Kept groups beyond `num_prompts` are dropped, since they would be off-policy by the next batch, and counted as surplus.

  Metrics: `kept_fraction`, `all_invalid_fraction` and `all_equal_fraction` (groups left out with no valid answer, or with valid ones
  of equal reward) over the groups rolled out; `filled_fraction` of the batch; `surplus`, `rounds`; `valid_rate`, `reward`, `raw_reward`,
  `truncated_rate`, `completion_length` and `sampling_entropy` over everything rolled out.
  Raises ValueError for a reward that is not finite, and when rounds differ in shape.
  """
  parts: list[RlBatch] = []
  round_metrics: list[dict[str, Metric]] = []
  kept = 0
  while kept < num_prompts and len(parts) < max_rounds:
    prompts = next_prompts()
    rollout = rollout_fn(prompts)
    part, metrics = _judge(jax.device_get(rollout), Judgement(*map(np.asarray, judge_fn(prompts, rollout))))
    if parts and part.prompts.shape[1:] + part.completions.shape[1:] != parts[0].prompts.shape[1:] + parts[0].completions.shape[1:]:
      raise ValueError(
        f"round {len(parts) + 1} has prompts {part.prompts.shape} and completions {part.completions.shape}, the first had "
        f"{parts[0].prompts.shape} and {parts[0].completions.shape}; pad every round to one prompt length"
      )
    parts.append(part)
    round_metrics.append(metrics)
    kept += int(part.keep.sum())
  pool = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
  # Stable: kept groups in the order they came. Where all rounds together are short of groups, some fill several places, at weight 0.
  order = np.resize(np.argsort(~pool.keep, kind="stable"), max(num_prompts, len(pool.keep)))[:num_prompts]
  batch = jax.tree.map(lambda array: array[order], pool)
  batch = batch.replace(keep=batch.keep & (np.arange(num_prompts) < kept))
  metrics = merge(round_metrics) | {
    "filled_fraction": Metric(float(batch.keep.sum()), float(num_prompts)),
    "surplus": Metric(float(max(kept - num_prompts, 0)), 1.0),
    "rounds": Metric(float(len(parts)), 1.0),
  }
  return batch, metrics


def _judge(rollout: Rollout, judgement: Judgement) -> tuple[RlBatch, dict[str, Metric]]:
  """One round's groups with their advantages, and its counts; everything on the host."""
  for name in ("rewards", "raw_rewards"):
    rewards = getattr(judgement, name)
    if not np.isfinite(rewards).all():
      prompt, member = np.argwhere(~np.isfinite(rewards))[0]
      raise ValueError(f"{name}[{prompt}, {member}] is {rewards[prompt, member]}; a reward must be finite for every answer")
  advantages, keep = jax.device_get(group_advantages(judgement.rewards, judgement.raw_rewards))
  batch = RlBatch(
    prompts=rollout.prompts,
    prompt_mask=rollout.prompt_mask,
    completions=rollout.completions,
    completion_mask=rollout.completion_mask,
    behaviour_logps=rollout.behaviour_logps,
    advantages=advantages,
    keep=keep,
  )
  some_valid = judgement.valid.any(axis=-1)

  def mean(values):
    return Metric(float(np.sum(values)), float(np.size(values)))

  tokens = float(rollout.completion_mask.sum())
  return batch, {
    "kept_fraction": mean(keep),
    "all_invalid_fraction": mean(~keep & ~some_valid),
    "all_equal_fraction": mean(~keep & some_valid),
    "valid_rate": mean(judgement.valid),
    "reward": mean(judgement.rewards),
    "raw_reward": mean(judgement.raw_rewards),
    "truncated_rate": mean(~rollout.finished),
    "completion_length": Metric(tokens, float(rollout.finished.size)),
    "sampling_entropy": Metric(float(rollout.entropy.sum()), tokens),
  }
