"""The policy update of reinforcement learning: gradient steps of the clipped loss on a batch of group rollouts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.adapters import Join
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.policy import DAPO, PolicyLossConfig, loss_denominator, policy_loss, truncated_importance_weights
from gr2_jax.rollout.completions import completion_log_probs
from gr2_jax.rollout.generate import Constraint
from gr2_jax.rollout.layout import Layout, pack, row_for_each
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.update import Update, join_parts, over_parts, split_parts
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState

Metrics = dict[str, Metric]


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """How a rollout batch becomes gradient steps.

  `temperature` is that of the rollout (top-p cannot be told to the loss, and shows as a gap to the behaviour log-probabilities);
  `minibatches` cut the prompts of a rollout batch into gradient steps, `microbatches` cut a gradient step to save memory, exactly.
  `packed_rows`: rows of a completion's greatest length into which a group's completions are packed, exactly, and in which a microbatch
  is computed if all of its groups fit; otherwise, and at None, every completion has a row of its own. Raises ValueError for values that
  cannot hold.
  """

  loss: PolicyLossConfig = DAPO
  temperature: float = 1.0
  minibatches: int = 1
  microbatches: int = 1
  packed_rows: int | None = None

  def __post_init__(self) -> None:
    if not 0 < self.temperature < math.inf:
      raise ValueError(
        f"temperature must be above 0 and finite to learn from samples, got {self.temperature}: greedy answers have no gradient"
      )
    if self.minibatches < 1 or self.microbatches < 1:
      raise ValueError(f"minibatches and microbatches must be at least 1, got {self.minibatches} and {self.microbatches}")
    if self.packed_rows is not None and self.packed_rows < 1:
      raise ValueError(f"packed_rows must be at least 1, or None (a row for each completion), got {self.packed_rows}")


def make_policy_update(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  config: UpdateConfig,
  constraint: Constraint | None = None,
  *,
  join: Join | None = None,
) -> Update:
  """Build `update(state, GroupBatch) -> (state, metrics)`: a gradient step of the clipped loss for each minibatch of a rollout batch.

  The loss is over the kept groups of the whole minibatch, whatever the microbatches and devices, each group weighed like its slate. A
  minibatch without any kept token leaves parameters and optimizer as they were, and reports no loss and no gradient norm; so does one
  whose loss or gradient is not finite, which is counted as `skipped`. The old policy of the ratio is the sampler's (behaviour
  log-probabilities) where there is one step on a batch and no importance weight. With several steps it is the trainer's, computed again
  before the first; with one step and importance weights it is the trainer's too, and the ratio is 1. P must divide into
  minibatches x microbatches. With `join` it is `update(state, GroupBatch, base)`: the state's parameters are adapters alone.

  Metrics: the diagnostics of `policy_loss`, `loss`, `entropy`, `grad_norm`, `skipped`; `logp_gap`, the mean |log π_trainer - log π_sampler|
  over tokens; with importance weights `importance_weight` and `importance_capped_fraction`; with `packed_rows`, `packed_fraction` of
  the microbatches, the others having had a group that did not fit.
  Compile it by `training.mesh.jit_update`, which donates the state and sets the shardings.
  """
  return _PolicyUpdate(decoder, optimizer, config, constraint, join).update


@dataclasses.dataclass(frozen=True, eq=False)
class _PolicyUpdate:
  """What `make_policy_update` builds; its methods are the parts of one update."""

  decoder: Decoder
  optimizer: optax.GradientTransformation
  config: UpdateConfig
  constraint: Constraint | None
  join: Join | None

  @property
  def one_step(self) -> bool:
    """Whether a batch is learnt from once."""
    return self.config.minibatches == 1

  def update(self, state: TrainState, batch: GroupBatch, base: Any = None) -> tuple[TrainState, Metrics]:
    """The state after all gradient steps on a batch."""
    trainer_logps = None if self.one_step else self.trainer_log_probs(self.whole(base, state.params), batch)
    start, step = (state.params, state.opt_state), functools.partial(self.gradient_step, base)
    (params, opt_state), metrics = over_parts(step, start, (batch, trainer_logps), self.config.minibatches)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  def whole(self, base: Any, params: Any) -> Any:
    """The policy's parameters, of those that are trained."""
    return params if self.join is None else self.join(base, params)

  def trainer_log_probs(self, params: Any, batch: GroupBatch) -> jax.Array:
    """Log-probabilities `[P, G, Lc]` before the first gradient step, a microbatch at a time."""

    def of_part(part: GroupBatch) -> jax.Array:
      return self.packed_where_it_fits(lambda layout: self.log_probs(params, part, layout)[0], part)[0]

    return join_parts(jax.lax.map(of_part, split_parts(batch, self.config.minibatches * self.config.microbatches)))

  def gradient_step(self, base: Any, carry: tuple[Any, Any], data: tuple[GroupBatch, jax.Array | None]) -> tuple[tuple[Any, Any], Metrics]:
    """Parameters and optimizer state after the step of one minibatch."""
    params, opt_state = carry
    denominator = loss_denominator(data[0].loss_mask, self.config.loss.aggregation, data[0].completion_weights)
    gradient = jax.grad(lambda params, *of: self.loss(self.whole(base, params), *of), has_aux=True)

    def add_part(grads: Any, part: tuple[GroupBatch, jax.Array | None]) -> tuple[Any, Metrics]:
      # Gradients stand inside the choice: differentiating it would keep what both branches need.
      (own, metrics), packed = self.packed_where_it_fits(lambda layout: gradient(params, *part, denominator, layout), part[0])
      return jax.tree.map(jnp.add, grads, own), metrics | packed

    grads, metrics = over_parts(add_part, jax.tree.map(jnp.zeros_like, params), data, self.config.microbatches)
    learns = denominator > 0
    metrics["grad_norm"] = Metric(optax.global_norm(grads), learns.astype(jnp.float32))
    updates, new_opt_state = self.optimizer.update(grads, opt_state, params)
    # Without a kept token the gradient is 0, but Adam's momentum and weight decay would move the parameters all the same.
    new = jax.tree.map(lambda x, y: jnp.where(learns, x, y), (optax.apply_updates(params, updates), new_opt_state), carry)
    return skip_if_not_finite(carry, new, metrics)

  def loss(
    self, params: Any, batch: GroupBatch, trainer_logps: jax.Array | None, denominator: jax.Array, layout: Layout | None
  ) -> tuple[jax.Array, Metrics]:
    """The clipped loss of one microbatch over the `denominator` of its minibatch."""
    log_probs, entropy = self.log_probs(params, batch, layout)
    mask, cap = batch.loss_mask, self.config.loss.importance_cap
    if trainer_logps is None:
      trainer_logps = jax.lax.stop_gradient(log_probs)
    old_logps = batch.behaviour_logps if self.one_step and cap is None else trainer_logps
    extra = {"entropy": jax.lax.stop_gradient(entropy), "logp_gap": jnp.abs(trainer_logps - batch.behaviour_logps)}
    importance: jax.Array | float = 1.0
    if cap is not None:
      importance = truncated_importance_weights(trainer_logps, batch.behaviour_logps, mask, cap)
      extra |= {"importance_weight": importance, "importance_capped_fraction": importance >= cap}
    loss = policy_loss(
      log_probs,
      old_logps,
      batch.advantages,
      mask,
      self.config.loss,
      importance_weights=importance,
      weights=batch.completion_weights,
    )
    metrics = {name: Metric(*pair) for name, pair in loss.diagnostics.items()}
    metrics |= {name: Metric.of(values, mask) for name, values in extra.items()}
    metrics["loss"] = Metric(loss.loss_sum, loss.denominator)
    return loss.loss_sum / jnp.where(denominator > 0, denominator, 1), metrics

  def log_probs(self, params: Any, batch: GroupBatch, layout: Layout | None) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy `[P, G, Lc]` of every completion token, computed in the rows of the layout."""
    layout = row_for_each(batch.completion_mask) if layout is None else layout
    return completion_log_probs(
      self.decoder, params, *batch.texts, temperature=self.config.temperature, constraint=self.constraint, layout=layout
    )

  def packed_where_it_fits(self, compute: Callable[[Layout | None], Any], batch: GroupBatch) -> tuple[Any, Metrics]:
    """What `compute` gives in packed rows if all groups of the batch fit into them, else in a row for each completion."""
    rows = self.config.packed_rows
    if rows is None or rows >= batch.completions.shape[1] or batch.completions.shape[2] == 1:
      return compute(None), {}
    layout, fits = pack(batch.completion_mask, rows)
    result = jax.lax.cond(fits, lambda: compute(layout), lambda: compute(None))
    return result, {"packed_fraction": Metric(fits.astype(jnp.float32), jnp.float32(1))}
