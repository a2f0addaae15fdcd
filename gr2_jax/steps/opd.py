"""On-policy distillation: the student's own rollouts, scored by a frozen teacher in the program that updates the student (GR2 Eq 4)."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.distillation import DistillationConfig, beta_at, distilled_advantages, make_kl
from gr2_jax.objectives.policy import PolicyLossConfig, loss_denominator, policy_loss
from gr2_jax.objectives.token_loss import distillation_terms, token_log_probs
from gr2_jax.rollout.scoring import completion_hidden, legal_states, make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.rl import RlBatch, loss_mask, over_parts
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState


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

  def __post_init__(self):
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
) -> Callable:
  """Build `update(state, RlBatch, teacher_params) -> (state, metrics)`: one gradient step of Eq 4 on a batch of the student's rollouts.

  The loss is the token mean, over all kept groups, of the clipped policy term with `reward_weight` x advantage, and β times the reverse KL
  to the teacher, β falling over `steps`. Student and teacher share a vocabulary and may differ in everything else; with the rollout's
  `constraint` both are compared over the legal tokens. A step whose loss or gradient is not finite changes nothing and is counted as
  `skipped`.

  Metrics: the diagnostics of `policy_loss`, `loss`, `entropy`, `grad_norm`, `skipped`, `beta`, `logp_gap` (as in `make_rl_update`), and
  `reverse_kl`, nats per token: its value in the form `exact`, a lower bound in `top_k`, the mean sampled log-ratio in `per_token`.
  Compile it by `training.mesh.jit_update` with the teacher's parameters as `frozen`.
  """
  distillation = config.distillation

  def compare(params, teacher_params, batch: RlBatch):
    """(log-probabilities, entropy, KL or its sampled log-ratio) of every completion token, each `[P, G, Lc]`."""
    states, temperature = legal_states(batch.prompts, batch.completions, batch.completion_mask, constraint), config.temperature
    texts = batch.prompts, batch.prompt_mask, batch.completions, batch.completion_mask
    models = (student, params), (teacher, teacher_params)
    hidden, teacher_hidden = (completion_hidden(decoder, of, *texts) for decoder, of in models)
    to_logits, to_teacher_logits = (make_to_logits(decoder, of, constraint) for decoder, of in models)
    if distillation.kl == "per_token":
      own = token_log_probs(to_logits, hidden, batch.completions, *states, temperature=temperature)
      teacher_logps, _ = token_log_probs(to_teacher_logits, teacher_hidden, batch.completions, *states, temperature=temperature)
      return *own, batch.behaviour_logps - teacher_logps
    return distillation_terms(
      to_logits,
      to_teacher_logits,
      hidden,
      teacher_hidden,
      batch.completions,
      *states,
      temperature=temperature,
      kl_fn=make_kl(distillation),
    )

  def loss_terms(params, batch: RlBatch, teacher_params, beta, denominator):
    mask = loss_mask(batch)
    log_probs, entropy, kl = compare(params, teacher_params, batch)
    advantages, kl_loss = config.reward_weight * batch.advantages, 0.0
    if distillation.kl == "per_token":
      advantages = distilled_advantages(advantages, kl, beta, distillation.clip)
    else:
      kl_loss = beta * jnp.sum(jnp.where(mask, kl, 0.0))
    loss = policy_loss(log_probs, batch.behaviour_logps, advantages, mask, config.policy)
    metrics = {name: Metric(*pair) for name, pair in loss.diagnostics.items()}
    watched = {"entropy": entropy, "reverse_kl": kl, "logp_gap": jnp.abs(log_probs - batch.behaviour_logps)}
    metrics |= {name: Metric.of(jax.lax.stop_gradient(values), mask) for name, values in watched.items()}
    total = loss.loss_sum + kl_loss
    metrics["loss"] = Metric(total, loss.denominator)
    return total / jnp.maximum(denominator, 1), metrics

  gradient = jax.grad(loss_terms, has_aux=True)

  def update(state: TrainState, batch: RlBatch, teacher_params):
    beta = beta_at(distillation, state.step, steps)
    denominator = loss_denominator(loss_mask(batch), config.policy.aggregation)

    def accumulate(grads, part):
      part_grads, metrics = gradient(state.params, part, teacher_params, beta, denominator)
      return jax.tree.map(jnp.add, grads, part_grads), metrics

    grads, metrics = over_parts(accumulate, jax.tree.map(jnp.zeros_like, state.params), batch, config.microbatches)
    metrics["grad_norm"] = Metric(optax.global_norm(grads), jnp.ones(()))
    metrics["beta"] = Metric(beta, jnp.ones(()))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = optax.apply_updates(state.params, updates), opt_state
    (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), new, metrics)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update
