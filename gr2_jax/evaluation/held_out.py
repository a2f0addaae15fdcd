"""What the best step of a scored policy's training is chosen by: numbers of the scores `[n, K]` that it gives held-out slates.

Each is built from `labels [n, K]`, -1 at padding, and `weights [n]` of the slates; higher is better.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.slates import label_shares
from gr2_jax.evaluation.baselines import rank_by_scores
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.objectives.plackett_luce import ranking_log_probs
from gr2_jax.rewards.own import Answers, RewardFn, Slates

Score = Callable[[np.ndarray], float]
_QUALITY = ("recall@1", "ndcg@3", "ndcg@10")


def likelihood_of_labels(labels: np.ndarray, weights: np.ndarray) -> Score:
  """Mean log-probability (nats) of the labels under the softmax of scores, for supervised training: less noisy than metrics of orders."""
  gains = label_shares(labels)

  def score(scores: np.ndarray) -> float:
    log_p = np.asarray(jax.nn.log_softmax(jnp.where(labels >= 0, scores, OUT_OF_REACH), axis=-1))
    return float(np.average(np.where(gains > 0, gains * log_p, 0).sum(axis=1), weights=weights))

  return score


def likelihood_of_rankings(labels: np.ndarray, weights: np.ndarray, rankings: np.ndarray) -> Score:
  """Mean log-probability (nats) of a teacher's rankings `[n, K]`, for imitation: of the labels it reads but where the padding is."""

  def score(scores: np.ndarray) -> float:
    log_probs = ranking_log_probs(jnp.asarray(scores), jnp.asarray(rankings)[:, None], jnp.asarray(labels >= 0))[:, 0]
    return float(np.average(np.asarray(log_probs), weights=weights))

  return score


def reward_of_order(reward: RewardFn, arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> Score:
  """Mean reward of the order of scores, for a reward of one's own; `arrays [n, K]`: the fields of its `Slates`, the labels among them."""
  judge = make_order_reward(reward, arrays)

  def score(scores: np.ndarray) -> float:
    return float(np.average(judge(rank_by_scores(scores, arrays["labels"], "the policy")), weights=weights))

  return score


def make_order_reward(reward: RewardFn, arrays: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
  """`judge(rankings [n, K]) -> rewards [n]` of full rankings, the padding last, of slates with the fields `arrays [n, K]`."""
  real = arrays["labels"] >= 0
  fields: dict[str, Any] = {name: jnp.asarray(of) for name, of in arrays.items()}
  listed = np.arange(real.shape[1]) < real.sum(axis=1, keepdims=True)

  @jax.jit
  def judge(rankings: jax.Array) -> jax.Array:
    answers = Answers(rankings, jnp.ones(rankings.shape[:2], bool), jnp.zeros(rankings.shape[:2], jnp.int32))
    shown = jnp.broadcast_to(jnp.arange(real.shape[1]), real.shape)
    return reward(answers, Slates(shown=shown, mask=jnp.asarray(real), **fields)).total[:, 0]

  return lambda rankings: np.asarray(judge(np.where(listed, rankings, -1)[:, None]))


def quality_of_order(labels: np.ndarray, weights: np.ndarray) -> Score:
  """Mean of R@1, N@3 and N@10 of the order of scores, for reinforcement learning, whose rewards do not make scores probabilities."""

  def score(scores: np.ndarray) -> float:
    metrics = compute_metrics(rank_by_scores(scores, labels, "the policy"), labels)
    return float(np.average(np.mean([metrics[name] for name in _QUALITY], axis=0), weights=weights))

  return score
