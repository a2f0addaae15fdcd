"""The losses of scored policies, whose answer is a Plackett-Luce draw from one score a candidate."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.objectives.plackett_luce import draw_rankings, first_place_entropy, ranking_log_probs
from gr2_jax.rewards.monitors import monitor_answers
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.training.metric import Metric

# loss(params, batch, edges, *, key) -> (loss, metrics). A batch holds `slates` (PackedSlates of P), `weights [P]`, and what a loss names.
ScoredLoss = Callable[..., tuple[jax.Array, dict[str, Metric]]]


def make_target_loss(model: SlateScorer) -> ScoredLoss:
  """Listwise cross-entropy against `targets [P, K]`, which need not be normalised: labels, a teacher's probabilities, or both."""

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    scores = _score(model, params, batch["slates"], edges, key)
    losses, learnt = listwise_cross_entropy(scores, batch["targets"], batch["slates"].real)
    return _conclude(losses, batch["weights"] * learnt, scores, batch["slates"])

  return loss_fn


def make_imitation_loss(model: SlateScorer) -> ScoredLoss:
  """Negative log-probability of a teacher's `rankings [P, K]` (candidate indices, best first), per candidate (ListMLE, Xia et al. 2008)."""

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    real = batch["slates"].real
    scores = _score(model, params, batch["slates"], edges, key)
    log_probs = ranking_log_probs(scores, batch["rankings"][:, None], real)[:, 0]
    return _conclude(-log_probs / jnp.maximum(real.sum(axis=-1), 1), batch["weights"], scores, batch["slates"])

  return loss_fn


def make_reward_loss(model: SlateScorer, reward: RewardConfig, *, group: int, temperature: float, divide_by: str) -> ScoredLoss:
  """Policy gradient on `group` rankings drawn of each slate, all from one pass of the model (REINFORCE with the group's advantages).

  batch: besides, `labels [P, K]`, -1 at padding. Draws are the policy's own, so that there is no ratio to clip; their log-probabilities
  are exact. Groups whose raw rewards do not vary count neither in the loss nor in its denominator.
  Metrics: those of `rewards.monitors`, in which every answer is valid by construction, and `kept_fraction`.
  """

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    slates, labels = batch["slates"], batch["labels"]
    drawing, dropping = jax.random.split(key)
    scores = _score(model, params, slates, edges, dropping) / temperature
    rankings = jax.lax.stop_gradient(draw_rankings(drawing, scores, slates.real, group))
    shown = jnp.broadcast_to(jnp.arange(labels.shape[1]), labels.shape)
    named = jnp.where(jnp.arange(labels.shape[1]) < slates.real.sum(axis=-1)[:, None, None], rankings, -1)
    rewards = compute_rewards(reward, named, labels, shown, mask=slates.real, divide_by=divide_by)
    gains = rewards.advantages * ranking_log_probs(scores, rankings, slates.real)
    loss, metrics = _conclude(-gains.mean(axis=-1), batch["weights"] * rewards.keep, scores, slates)
    monitors = monitor_answers(rewards, named, shown, jnp.zeros(rewards.total.shape))
    return loss, monitors | metrics | {"kept_fraction": Metric.of(rewards.keep)}

  return loss_fn


def _score(model: SlateScorer, params: Any, slates: PackedSlates, edges: jax.Array, key: jax.Array) -> jax.Array:
  return model.apply({"params": params}, slates, edges, deterministic=False, rngs={"dropout": key})


def _conclude(losses: jax.Array, weights: jax.Array, scores: jax.Array, slates: PackedSlates) -> tuple[jax.Array, dict[str, Metric]]:
  """The weighted mean of losses `[P]`, and the metrics `loss` and `entropy` (of the first place, nats)."""
  total = jnp.sum(weights)
  loss = jnp.sum(losses * weights) / jnp.maximum(total, 1e-9)
  return loss, {"loss": Metric(jnp.sum(losses * weights), total), "entropy": Metric.of(first_place_entropy(scores, slates.real))}
