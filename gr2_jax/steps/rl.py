"""Reinforcement learning on group rollouts: collect groups that carry a signal, then update on a shared-prefix forward."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.experimental import multihost_utils

from gr2_jax.errors import UserError
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, loss_denominator, policy_loss, truncated_importance_weights
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.generate import Constraint, Rollout, prefill
from gr2_jax.rollout.layout import Layout, pack, row_for_each
from gr2_jax.rollout.scoring import legal_states, make_to_logits
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric, merge
from gr2_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class RlConfig:
  """`temperature` is that of the rollout (top-p cannot be told to the loss, and shows as a gap to the behaviour log-probabilities);
  `minibatches` cut the prompts of a rollout batch into gradient steps, `microbatches` cut a gradient step to save memory, exactly.
  `packed_rows`: rows of a completion's greatest length into which a group's completions are packed, exactly, and in which a microbatch
  is computed if all of its groups fit; otherwise, and at 0, every completion has a row of its own.
  """

  loss: PolicyLossConfig = DAPO
  temperature: float = 1.0
  minibatches: int = 1
  microbatches: int = 1
  packed_rows: int = 0

  def __post_init__(self):
    if not 0 < self.temperature < math.inf:
      raise ValueError(
        f"temperature must be above 0 and finite to learn from samples, got {self.temperature}: greedy answers have no gradient"
      )
    if self.minibatches < 1 or self.microbatches < 1:
      raise ValueError(f"minibatches and microbatches must be at least 1, got {self.minibatches} and {self.microbatches}")
    if self.packed_rows < 0:
      raise ValueError(f"packed_rows must be 0 (a row for each completion) or more, got {self.packed_rows}")


@struct.dataclass
class RlBatch:
  """What an update reads of P groups: `prompts, prompt_mask [P, Lp]`; `completions, completion_mask, behaviour_logps [P, G, Lc]`;
  `advantages [P, G]`; `keep [P]`, False for groups that count neither in the loss nor in its denominator. A completion that is not to be
  learnt from has a `completion_mask` of False throughout.
  """

  prompts: Any
  prompt_mask: Any
  completions: Any
  completion_mask: Any
  behaviour_logps: Any
  advantages: Any
  keep: Any


def completion_log_probs(
  decoder: Decoder,
  params,
  batch: RlBatch,
  temperature: float = 1.0,
  constraint: Constraint | None = None,
  layout: Layout | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy `[P, G, Lc]` (float32) of every completion token, each prompt computed once.

  The G completions of a prompt attend to its keys and values, through which their gradients flow back, so that values and gradients
  are those of G full sequences. The first token is predicted by the prompt's last hidden state, and the last token is not fed.
  With the `constraint` of the rollout, both are of the distribution over legal tokens.
  `layout`: the rows that completions are computed in (default: one for each); it changes no value under `completion_mask`.
  """
  layout = row_for_each(batch.completion_mask) if layout is None else layout
  num_prompts, group, length = batch.completions.shape
  source = layout.source.reshape(num_prompts, -1)
  last_hidden, prefix, prompt_lengths = prefill(decoder, params, batch.prompts, batch.prompt_mask)

  def fed(x, offset=0):  # [P, G, Lc, ...] -> [P, R * (Lc - 1), ...]: x at the places of the rows, or `offset` tokens further on
    index = (jnp.maximum(source, 0) + offset).reshape(*source.shape, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x.reshape(num_prompts, group * length, *x.shape[3:]), index, axis=1)

  def predicted(x):  # the first of each completion, which the prompt predicts, then what the rows predict
    return jnp.concatenate([x[:, :, 0], fed(x, 1)], axis=1)

  hidden = jnp.repeat(last_hidden[:, None], group, axis=1)
  if length > 1:
    segments = jnp.where((source >= 0) & (fed(batch.completion_mask) > 0), 1 + source // length, 0)
    positions = prompt_lengths[:, None] + source % length
    rows = [x.reshape(-1, length - 1) for x in (fed(batch.completions), positions, segments)]
    suffix, _ = decoder.apply({"params": params}, *rows, prefix=prefix)
    hidden = jnp.concatenate([hidden, suffix.reshape(*source.shape, -1)], axis=1)

  states = jax.tree.map(predicted, legal_states(batch.prompts, batch.completions, batch.completion_mask, constraint))
  to_logits = make_to_logits(decoder, params, constraint)
  terms = token_log_probs(to_logits, hidden, predicted(batch.completions), *states, temperature=temperature)
  # Behind a completion's end the place may be no place at all, hence the clip; nobody reads what stands there.
  place = jnp.concatenate([jnp.broadcast_to(jnp.arange(group)[:, None], (num_prompts, group, 1)), group + layout.place], axis=-1)
  place = place.reshape(num_prompts, -1).clip(0, hidden.shape[1] - 1)
  log_probs, entropy = (jnp.take_along_axis(x, place, axis=1).reshape(batch.completions.shape) for x in terms)
  return log_probs, entropy


def make_rl_update(
  decoder: Decoder, optimizer: optax.GradientTransformation, config: RlConfig, constraint: Constraint | None = None
) -> Callable:
  """Build `update(state, RlBatch) -> (state, metrics)`: a gradient step of the clipped loss for each minibatch of a rollout batch.

  The loss is over the kept groups of the whole minibatch, whatever the microbatches and devices. A minibatch without any kept token
  leaves parameters and optimizer as they were, and reports no loss and no gradient norm; so does one whose loss or gradient is not
  finite, which is counted as `skipped`. The old policy of the ratio is the sampler's (behaviour log-probabilities) where there is one
  step on a batch and no importance weight. With several steps it is the trainer's, computed again before the first; with one step and
  importance weights it is the trainer's too, and the ratio is 1. P must divide into minibatches x microbatches.

  Metrics: the diagnostics of `policy_loss`, `loss`, `entropy`, `grad_norm`, `skipped`; `logp_gap`, the mean |log π_trainer - log π_sampler|
  over tokens; with importance weights `importance_weight` and `importance_capped_fraction`; with `packed_rows`, `packed_fraction` of
  the microbatches, the others having had a group that did not fit.
  Compile it by `training.mesh.jit_update`, which donates the state and sets the shardings.
  """
  weighed = config.loss.importance_cap > 0
  one_step = config.minibatches == 1

  def log_probs_of(params, batch: RlBatch, layout: Layout | None):
    return completion_log_probs(decoder, params, batch, config.temperature, constraint, layout)

  def packed_where_it_fits(compute: Callable[[Layout | None], Any], batch: RlBatch) -> tuple[Any, dict[str, Metric]]:
    if not 0 < config.packed_rows < batch.completions.shape[1] or batch.completions.shape[2] == 1:
      return compute(None), {}
    layout, fits = pack(batch.completion_mask, config.packed_rows)
    result = jax.lax.cond(fits, lambda: compute(layout), lambda: compute(None))
    return result, {"packed_fraction": Metric(fits.astype(jnp.float32), jnp.float32(1))}

  def loss_terms(params, batch: RlBatch, trainer_logps, denominator, layout):
    log_probs, entropy = log_probs_of(params, batch, layout)
    mask = loss_mask(batch)
    if one_step:
      trainer_logps = jax.lax.stop_gradient(log_probs)
    old_logps = batch.behaviour_logps if one_step and not weighed else trainer_logps
    extra = {"entropy": jax.lax.stop_gradient(entropy), "logp_gap": jnp.abs(trainer_logps - batch.behaviour_logps)}
    weights = 1.0
    if weighed:
      weights = truncated_importance_weights(trainer_logps, batch.behaviour_logps, mask, config.loss.importance_cap)
      extra |= {"importance_weight": weights, "importance_capped_fraction": weights >= config.loss.importance_cap}
    loss = policy_loss(log_probs, old_logps, batch.advantages, mask, config.loss, importance_weights=weights)
    metrics = {name: Metric(*pair) for name, pair in loss.diagnostics.items()}
    metrics |= {name: Metric.of(values, mask) for name, values in extra.items()}
    metrics["loss"] = Metric(loss.loss_sum, loss.denominator)
    return loss.loss_sum / jnp.maximum(denominator, 1), metrics

  gradient = jax.grad(loss_terms, has_aux=True)

  def gradient_step(carry, data):
    params, opt_state = carry
    batch, trainer_logps = data
    denominator = loss_denominator(loss_mask(batch), config.loss.aggregation)

    def accumulate(grads, part):
      # Gradients stand inside the choice: differentiating it would keep what both branches need.
      (part_grads, metrics), packed = packed_where_it_fits(lambda layout: gradient(params, *part, denominator, layout), part[0])
      return jax.tree.map(jnp.add, grads, part_grads), metrics | packed

    grads, metrics = over_parts(accumulate, jax.tree.map(jnp.zeros_like, params), data, config.microbatches)
    learns = denominator > 0
    metrics["grad_norm"] = Metric(optax.global_norm(grads), learns.astype(jnp.float32))
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    # Without a kept token the gradient is 0, but Adam's momentum and weight decay would move the parameters all the same.
    new = jax.tree.map(lambda x, y: jnp.where(learns, x, y), (optax.apply_updates(params, updates), new_opt_state), carry)
    return skip_if_not_finite(carry, new, metrics)

  def update(state: TrainState, batch: RlBatch):
    trainer_logps = None
    if not one_step:
      parts = config.minibatches * config.microbatches

      def logps(part):
        return packed_where_it_fits(lambda layout: log_probs_of(state.params, part, layout)[0], part)[0]

      trainer_logps = _join(jax.lax.map(logps, _split(batch, parts)))
    carry, metrics = over_parts(gradient_step, (state.params, state.opt_state), (batch, trainer_logps), config.minibatches)
    return TrainState(step=state.step + 1, params=carry[0], opt_state=carry[1]), metrics

  return update


def _split(tree: Any, parts: int) -> Any:
  """Leading axis `[P, ...]` to `[parts, P / parts, ...]`, by strides: where P lies over devices each keeps its own prompts."""

  def cut(x):
    if len(x) % parts:
      raise ValueError(f"{len(x)} prompts do not divide into {parts} parts (minibatches x microbatches)")
    return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(cut, tree)


def _join(x: jax.Array) -> jax.Array:
  """The inverse of `_split`."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def over_parts(step: Callable, carry: Any, data: Any, parts: int) -> tuple[Any, dict[str, Metric]]:
  """`carry, metrics = step(carry, part)` over the parts of the data one after the other, with the metrics added up."""
  if parts == 1:
    return step(carry, data)
  carry, metrics = jax.lax.scan(step, carry, _split(data, parts))
  return carry, jax.tree.map(lambda x: x.sum(axis=0), metrics)


def loss_mask(batch: RlBatch) -> jax.Array:
  """The tokens `[P, G, Lc]` that are learnt from."""
  return batch.completion_mask * batch.keep[:, None, None]


class Judgement(NamedTuple):
  """What a rollout's answers are worth, `[P, G]`: `rewards` as optimised, `valid` whether the answer is a full permutation,
  `advantages`, all 0 in a group without a signal; and `keep [P]`, the groups to learn from.
  """

  rewards: Any
  valid: Any
  advantages: Any
  keep: Any


def collect_groups(
  play_round: Callable[[], tuple[Rollout, Judgement]],
  *,
  num_prompts: int,
  max_rounds: int,
  min_filled: float = 1.0,
  mask_truncated: bool = False,
  fetch: Callable[[Any], Any] = jax.device_get,
  gather: Callable[[np.ndarray], np.ndarray] = multihost_utils.process_allgather,
) -> tuple[RlBatch, dict[str, Metric]]:
  """Play rounds until `num_prompts` groups are kept, for at most `max_rounds` rounds (DAPO's dynamic sampling).

  `play_round()` draws prompts and gives their groups with what these are worth, in the same shapes each round, on the device or not.
  Returns a batch of exactly `num_prompts` groups on the host: kept groups first, in order, then groups with `keep` False. Kept groups
  beyond `num_prompts` are dropped, since they would be off-policy by the next batch, and counted as surplus.
  `min_filled`: share of the batch that is enough, since a whole round for its last groups can cost more than they are worth; places left
  over weigh nothing, and the loss is exact all the same. A judge that keeps every group (GRPO) fills the batch in one round.
  `mask_truncated`: completions cut off at the limit are not learnt from.

  Each of several processes fills a share of its own, of `num_prompts` groups; `fetch` brings its rows of device arrays to the host. All
  go on until the last of them is full: a decision that they take alike, from the counts that `gather` (array -> the arrays of all
  processes, stacked) brings together.

  Metrics: `filled_fraction` and `surplus_fraction` of this process's batch; `rounds`; and over everything rolled out, by all processes,
  `kept_fraction`, `all_invalid_fraction` and `all_equal_fraction` (groups without a signal, with no valid answer, or with some, of equal
  reward), `valid_rate`, `reward`, `truncated_rate`, `completion_length`, `sampling_entropy` and `occupancy` (the share of rows x decoding
  steps that wrote a token). Groups of one, and of a slate whose order cannot matter (no positives, or nothing else), are among the equal
  ones.
  Raises ValueError for a reward that is not finite, and when rounds differ in shape.
  """
  parts: list[RlBatch] = []
  round_metrics: list[dict[str, Metric]] = []
  kept = 0
  for number in range(1, max_rounds + 1):
    rollout, judgement = play_round()
    part, metrics = _form_groups(rollout, judgement, mask_truncated)
    if parts and jax.tree.map(jnp.shape, part) != jax.tree.map(jnp.shape, parts[0]):
      raise ValueError(
        f"round {number} has prompts {part.prompts.shape} and completions {part.completions.shape}, the first had "
        f"{parts[0].prompts.shape} and {parts[0].completions.shape}; give every round the same prompts, padded to one length"
      )
    parts.append(part)
    round_metrics.append(metrics)
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
def _form_groups(rollout: Rollout, judgement: Judgement, mask_truncated: bool) -> tuple[RlBatch, dict[str, Metric]]:
  """One round's groups, and its counts."""
  learnt = rollout.finished[..., None] if mask_truncated else True
  batch = RlBatch(
    prompts=rollout.prompts,
    prompt_mask=rollout.prompt_mask,
    completions=rollout.completions,
    completion_mask=rollout.completion_mask & learnt,
    behaviour_logps=rollout.behaviour_logps,
    advantages=judgement.advantages,
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


class NoSignalError(UserError):
  """In too many steps in a row no group carried a signal; the message counts why, and says what helps."""


class SilenceCounter:
  """Counts steps in a row in which no group carried a signal, from the metrics of `collect_groups`; begins at 0 when a run is continued.

  Such a step leaves the parameters as they are, and the next one asks the same policy again: many in a row are a run that learns nothing.
  """

  def __init__(self, limit: int):
    self._limit = limit
    self._silent: list[Mapping[str, Metric]] = []

  def add(self, metrics: Mapping[str, Metric]) -> None:
    """Raises NoSignalError at the limit. All processes do so alike, where the metrics are those of all of them."""
    self._silent.append(metrics)
    total = merge(self._silent)
    no_answer, alike = total["all_invalid_fraction"], total["all_equal_fraction"]
    if no_answer.sum + alike.sum < alike.count:
      self._silent.clear()
    if len(self._silent) < self._limit:
      return
    raise NoSignalError(
      f"no group carried a signal in {len(self._silent)} steps in a row, so nothing was learnt: of {int(alike.count):,} groups "
      f"{int(no_answer.sum):,} had no valid answer and {int(alike.sum):,} had answers of equal reward; "
      f"{float(total['truncated_rate'].mean()):.0%} of the answers were cut off at the limit. Without valid answers: train SFT longer, "
      "raise max_new_tokens, or constrain decoding to the slate. With equal rewards: raise the temperature or the group size, and see "
      "whether the slates have both positives and negatives"
    )
