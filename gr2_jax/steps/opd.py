"""On-policy distillation: the student's own rollouts, scored by a frozen teacher in the program that updates the student (GR2 Eq 4)."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.adapters import Join
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.distillation import DistillationConfig, beta_at, distilled_advantages, make_kl
from gr2_jax.objectives.policy import PolicyLossConfig, loss_denominator, policy_loss
from gr2_jax.objectives.token_loss import distillation_terms
from gr2_jax.rollout.completions import completion_hidden, completion_log_probs, legal_states, make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.batch import GroupBatch
from gr2_jax.steps.update import Update, make_update
from gr2_jax.training.metric import Metric


@dataclasses.dataclass(frozen=True)
class OpdConfig:
  """`reward_weight` scales the group-normalised ranking reward beside the distillation: 1 is Eq 4, 0 pure distillation. The policy term is
  DAPO's token mean, clipped to 1 - `clip_low` .. 1 + `clip_high`. `temperature` is the rollout's, and both models are compared at it;
  `microbatches` cut an update to save memory, exactly. Raises ValueError for values that cannot hold.
  """

  distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
  reward_weight: float = 1.0
  clip_low: float = 0.2
  clip_high: float = 0.28
  temperature: float = 1.0
  microbatches: int = 1

  def __post_init__(self) -> None:
    if not 0 <= self.reward_weight < math.inf:
      raise ValueError(f"reward_weight: {self.reward_weight} must not be negative, and finite; 0 is distillation without a reward")
    if not 0 < self.temperature < math.inf:
      raise ValueError(f"temperature must be above 0 and finite to learn from samples, got {self.temperature}")
    if self.reward_weight == 0 and self.distillation.beta == self.distillation.beta_end == 0:
      raise ValueError("reward_weight and beta are both 0, so nothing is learnt; set one of them")

  @property
  def policy(self) -> PolicyLossConfig:
    """The loss of the policy term."""
    return PolicyLossConfig(clip_low=self.clip_low, clip_high=self.clip_high)


def make_opd_update(
  student: Decoder,
  teacher: Decoder,
  optimizer: optax.GradientTransformation,
  config: OpdConfig,
  *,
  steps: int,
  constraint: SlateConstraint | None = None,
  join: Join | None = None,
) -> Update:
  """Build `update(state, GroupBatch, teacher_params) -> (state, metrics)`: one gradient step of Eq 4 on a batch of the student's rollouts.

  The loss is the token mean, over all kept groups, of the clipped policy term with `reward_weight` x advantage, and β times the reverse KL
  to the teacher, β falling over `steps`. Student and teacher share a vocabulary and may differ in everything else; with the rollout's
  `constraint` both are compared over the legal tokens. A step whose loss or gradient is not finite changes nothing and is counted as
  `skipped`.

  Metrics: the diagnostics of `policy_loss`, `loss`, `entropy`, `grad_norm`, `skipped`, `beta`, `logp_gap` (as in `make_policy_update`), and
  `reverse_kl`, nats per token: its value in the form `exact`, a lower bound in `top_k`, the mean sampled log-ratio in `per_token`.
  Compile it by `training.mesh.jit_update` with the teacher's parameters as `frozen`; with `join`, see `make_update`, after the base.
  """
  distillation, per_token = config.distillation, config.distillation.kl == "per_token"

  def compare(params: Any, teacher_params: Any, batch: GroupBatch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-probabilities, entropy, KL or its sampled log-ratio) of every completion token, each `[P, G, Lc]`."""
    if per_token:
      log_probs_of = functools.partial(completion_log_probs, temperature=config.temperature, constraint=constraint)
      log_probs, entropy = log_probs_of(student, params, *batch.texts)
      teacher_logps, _ = log_probs_of(teacher, teacher_params, *batch.texts)
      return log_probs, entropy, batch.behaviour_logps - teacher_logps
    models = (student, params), (teacher, teacher_params)
    hidden, teacher_hidden = (completion_hidden(decoder, of, *batch.texts) for decoder, of in models)
    to_logits, to_teacher_logits = (make_to_logits(decoder, of, constraint) for decoder, of in models)
    return distillation_terms(
      to_logits,
      to_teacher_logits,
      hidden,
      teacher_hidden,
      batch.completions,
      *legal_states(batch.prompts, batch.completions, batch.completion_mask, constraint),
      temperature=config.temperature,
      kl_fn=make_kl(distillation),
    )

  def whole_batch(step: jax.Array, batch: GroupBatch) -> dict[str, jax.Array]:
    denominator = loss_denominator(batch.loss_mask, config.policy.aggregation, batch.completion_weights)
    return {"beta": beta_at(distillation, step, steps), "denominator": denominator}

  def loss_fn(
    params: Any, batch: GroupBatch, teacher_params: Any, *, beta: jax.Array, denominator: jax.Array
  ) -> tuple[jax.Array, dict[str, Metric]]:
    mask = batch.loss_mask
    log_probs, entropy, kl = compare(params, teacher_params, batch)
    advantages = config.reward_weight * batch.advantages
    kl_loss: jax.Array | float = 0.0
    if per_token:
      advantages = distilled_advantages(advantages, kl, beta, distillation.clip)
    else:
      kl_loss = beta * jnp.sum(jnp.where(mask, kl * batch.completion_weights[..., None], 0.0))
    loss = policy_loss(log_probs, batch.behaviour_logps, advantages, mask, config.policy, weights=batch.completion_weights)
    metrics = {name: Metric(*pair) for name, pair in loss.diagnostics.items()}
    watched = {"entropy": entropy, "reverse_kl": kl, "logp_gap": jnp.abs(log_probs - batch.behaviour_logps)}
    metrics |= {name: Metric.of(jax.lax.stop_gradient(values), mask) for name, values in watched.items()}
    total = loss.loss_sum + kl_loss
    metrics |= {"loss": Metric(total, loss.denominator), "beta": Metric(beta, jnp.ones(()))}
    return total / jnp.where(denominator > 0, denominator, 1), metrics

  return make_update(optimizer, loss_fn, microbatches=config.microbatches, whole_batch=whole_batch, join=join)
