"""On-policy distillation of scored policies: the student's own rankings, and the reasonings before them, against a teacher (GR2 Eq 4)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.objectives.distillation import DistillationConfig, distilled_advantages, make_kl, reverse_kl
from gr2_jax.objectives.plackett_luce import place_distributions, place_log_probs
from gr2_jax.objectives.token_loss import distillation_terms
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rollout.reasoned import Thoughts, follow_thoughts, score_thoughts, to_token_logits
from gr2_jax.steps.opd import OpdConfig
from gr2_jax.steps.scored import Judged, ScoredLoss, climb_back, conclude, judge_draws, score_slates
from gr2_jax.training.metric import Metric


def make_scored_opd_loss(model: SlateScorer, config: OpdConfig, reward: RewardConfig, *, group: int) -> ScoredLoss:
  """Eq 4 on `group` rankings drawn of each slate: `reward_weight` x the policy gradient, and β x the reverse KL of a ranking.

  batch: besides `labels [P, K]`, -1 at padding, and the teacher's scores `teacher_scores [P, K]`; `beta` comes with the key. No slate is
  left out, whatever its rewards. Draws are the student's own of this step, so that there is no ratio to clip.
  Metrics: those of `make_reward_loss` but for `kept_fraction`, `beta`, and `reverse_kl`, nats a ranking.
  """

  def loss_fn(
    params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array, beta: jax.Array
  ) -> tuple[jax.Array, dict[str, Metric]]:
    drawing, dropping = jax.random.split(key)
    scores = score_slates(model, params, batch["slates"], edges, dropping)[:, None]
    judged, loss, metrics = _distil(drawing, scores, batch["teacher_scores"][:, None], batch, config, reward, rankings=group, beta=beta)
    return loss, judged.monitor(jnp.zeros(judged.rewards.total.shape)) | metrics

  return loss_fn


def make_reasoned_opd_loss(
  model: SlateScorer, teacher: SlateScorer, opening: int, config: OpdConfig, reward: RewardConfig, *, rankings: int
) -> ScoredLoss:
  """`make_scored_opd_loss` on `rankings` drawn after each of the student's reasonings, behind which the teacher scores them as well.

  batch: `labels [P, K]`, `thoughts, thought_mask [P, G, L]`, the student's reasonings of this step, drawn at temperature 1, and
  `teacher_facts [P, K, F]` of the candidates as the teacher reads them; `frozen` are the teacher's parameters and edges. To the loss of
  rankings come the reasonings': `reward_weight` x that of their rankings' mean reward, and β x the reverse KL, the mean over all tokens.
  Metrics: besides, `reverse_kl_reasoning` and `entropy_reasoning`, nats a token.
  """
  distillation, per_token = config.distillation, config.distillation.kl == "per_token"

  def compare(
    params: Any,
    teacher_params: Any,
    slates: PackedSlates,
    teacher_slates: PackedSlates,
    edges: tuple[Any, Any],
    thoughts: Thoughts,
    key: Any,
  ) -> tuple[jax.Array, ...]:
    """Of reasonings: log-probabilities, entropy, KL or its sampled log-ratio, each `[P, G, L]`, and both scores behind them `[P, G, K]`."""
    own = (model, params, slates, edges[0], thoughts, opening)
    taught = (teacher, teacher_params, teacher_slates, edges[1], thoughts, opening)
    if per_token:
      found, theirs = score_thoughts(*own, deterministic=False, key=key), score_thoughts(*taught)
      log_ratio = jax.lax.stop_gradient(found.log_probs - theirs.log_probs)
      return found.log_probs, found.entropy, log_ratio, found.scores, theirs.scores
    states, their_states = follow_thoughts(*own, deterministic=False, key=key), follow_thoughts(*taught)
    to_logits, to_teacher_logits = to_token_logits(model, params), to_token_logits(teacher, teacher_params)
    hidden = states.hidden, their_states.hidden
    terms = distillation_terms(to_logits, to_teacher_logits, *hidden, thoughts.tokens, kl_fn=make_kl(distillation))
    return *(jnp.where(thoughts.mask > 0, x, 0.0) for x in terms), states.scores, their_states.scores

  def loss_fn(
    params: Any,
    batch: Mapping[str, Any],
    edges: jax.Array,
    teacher_params: Any,
    teacher_edges: jax.Array,
    *,
    key: jax.Array,
    beta: jax.Array,
  ) -> tuple[jax.Array, dict[str, Metric]]:
    drawing, dropping = jax.random.split(key)
    slates, thoughts = batch["slates"], Thoughts(batch["thoughts"], batch["thought_mask"])
    theirs = slates._replace(facts=batch["teacher_facts"])
    log_probs, entropy, kl, scores, teacher_scores = compare(
      params, teacher_params, slates, theirs, (edges, teacher_edges), thoughts, dropping
    )
    judged, loss, metrics = _distil(drawing, scores, teacher_scores, batch, config, reward, rankings=rankings, beta=beta)
    counted = thoughts.mask * batch["weights"][:, None, None]
    loss -= config.reward_weight * judged.climb_thoughts(log_probs, counted, config.policy.divide_by)
    if per_token:
      loss -= climb_back(log_probs, kl, counted, beta, distillation.clip)
    else:
      loss += beta * jnp.sum(kl * counted) / jnp.maximum(jnp.sum(counted), 1e-9)
    lengths = jnp.repeat(thoughts.mask.sum(axis=-1), rankings, axis=1)
    watched = {"reverse_kl_reasoning": kl, "entropy_reasoning": entropy}
    metrics |= {name: Metric.of(jax.lax.stop_gradient(values), thoughts.mask) for name, values in watched.items()}
    return loss, judged.monitor(lengths) | metrics

  return loss_fn


def distil_rankings(
  scores: jax.Array,
  teacher_scores: jax.Array,
  rankings: jax.Array,
  mask: jax.Array,
  advantages: jax.Array,
  beta: jax.Array | float,
  config: DistillationConfig,
) -> tuple[jax.Array, jax.Array]:
  """(Losses, reverse KLs in nats), each `[..., M]`, of rankings `[..., M, K]` that the student drew from its scores `[..., K]`.

  A loss is -`advantages [..., M]` x the ranking's log-probability + β x the sum over places of the reverse KL to the teacher of who stands
  there, of those that are left: in expectation the KL of the two Plackett-Luce policies. In the form `per_token` a place's KL is its
  sampled log-ratio. As with tokens, what came before a place is held fixed in the gradient. mask `[..., K]` is true at candidates.
  """
  log_probs = place_log_probs(scores, rankings, mask)
  if config.kl == "per_token":
    log_ratio = jax.lax.stop_gradient(log_probs - place_log_probs(teacher_scores, rankings, mask))
    return -jnp.sum(distilled_advantages(advantages, log_ratio, beta, config.clip) * log_probs, axis=-1), log_ratio.sum(axis=-1)
  theirs = jax.lax.stop_gradient(place_distributions(teacher_scores, rankings, mask))
  kl = reverse_kl(place_distributions(scores, rankings, mask), theirs, config.clip).sum(axis=-1)
  return beta * kl - advantages * log_probs.sum(axis=-1), kl


def _distil(
  key: jax.Array,
  scores: jax.Array,
  teacher_scores: jax.Array,
  batch: Mapping[str, Any],
  config: OpdConfig,
  reward: RewardConfig,
  *,
  rankings: int,
  beta: jax.Array,
) -> tuple[Judged, jax.Array, dict[str, Metric]]:
  """Draws `rankings` of each row of `scores [P, G, K]`; what they earn, the loss that they make, and its metrics."""
  slates = batch["slates"]
  scores, teacher_scores = scores / config.temperature, teacher_scores / config.temperature
  judged = judge_draws(key, scores, batch, reward, rankings=rankings, divide_by=config.policy.divide_by)
  advantages = config.reward_weight * judged.rewards.advantages.reshape(judged.drawn.shape[:3])
  losses, kl = distil_rankings(scores, teacher_scores, judged.drawn, slates.real[:, None], advantages, beta, config.distillation)
  loss, metrics = conclude(losses.mean(axis=(1, 2)), batch["weights"], scores.mean(axis=1), slates)
  return judged, loss, metrics | {"reverse_kl": Metric.of(jax.lax.stop_gradient(kl)), "beta": Metric(beta, jnp.ones(()))}
