"""The losses of scored policies, whose answer is a Plackett-Luce draw from one score a candidate."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.distillation import distilled_advantages
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.objectives.plackett_luce import draw_rankings, first_place_entropy, ranking_log_probs
from gr2_jax.rewards.judge import check_shapes, complete_rewards
from gr2_jax.rewards.monitors import monitor_answers
from gr2_jax.rewards.own import Answers, RewardFn, Slates, describe_reward
from gr2_jax.rewards.verifiable import RewardConfig, RewardTerms, compute_rewards
from gr2_jax.rollout.reasoned import Thoughts, ThoughtScores, score_thoughts
from gr2_jax.rollout.true_facts import TrueFacts
from gr2_jax.training.metric import Metric

# loss(params, batch, edges, *, key) -> (loss, metrics). A batch holds `slates` (PackedSlates of P), `weights [P]`, and what a loss names.
ScoredLoss = Callable[..., tuple[jax.Array, dict[str, Metric]]]

THROUGH = ("whole", "target")  # what of a ranking RL climbs
REWARDED = ("gains", "brands", "prices", "small")  # what of slates a reward of one's own may read besides labels, see `rewards.own.Slates`
_MOST_STRAYED = 10.0  # nats of one token up to which its divergence counts in a gradient, as in on-policy distillation


def make_target_loss(model: SlateScorer) -> ScoredLoss:
  """Listwise cross-entropy against `targets [P, K]`, which need not be normalised: labels, a teacher's probabilities, or both."""

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    return _approach(score_slates(model, params, batch["slates"], edges, key), batch)

  return loss_fn


def make_imitation_loss(model: SlateScorer) -> ScoredLoss:
  """Negative log-probability of a teacher's `rankings [P, K]` (candidate indices, best first), per candidate (ListMLE, Xia et al. 2008)."""

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    return _imitate(score_slates(model, params, batch["slates"], edges, key), batch)

  return loss_fn


def make_reward_loss(
  model: SlateScorer, reward: RewardConfig | RewardFn, *, group: int, temperature: float, divide_by: str, through: str = "whole"
) -> ScoredLoss:
  """Policy gradient on `group` rankings drawn of each slate, all from one pass of the model (REINFORCE with the group's advantages).

  batch: besides, `labels [P, K]`, -1 at padding, and what a reward of one's own reads of slates, see REWARDED. Draws are the policy's own,
  so that there is no ratio to clip; their log-probabilities are exact. Groups whose raw rewards do not vary count neither in the loss nor
  in its denominator. `through`, one of THROUGH: what of a ranking is climbed, see `Judged.climb`.
  Metrics: those of `rewards.monitors`, in which every answer is valid by construction, and `kept_fraction`.
  """

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    slates, labels = batch["slates"], batch["labels"]
    drawing, dropping = jax.random.split(key)
    scores = score_slates(model, params, slates, edges, dropping) / temperature
    judged = judge_draws(drawing, scores[:, None], batch, reward, rankings=group, divide_by=divide_by)
    rewards, gains = judged.rewards, judged.climb(scores[:, None], slates, labels, through)
    loss, metrics = conclude(-gains.mean(axis=(1, 2)), batch["weights"] * rewards.keep, scores, slates)
    monitors = judged.monitor(jnp.zeros(rewards.total.shape))
    return loss, monitors | metrics | {"kept_fraction": Metric.of(rewards.keep)}

  return loss_fn


def make_reasoned_imitation_loss(
  model: SlateScorer, opening: int, *, reasoning_weight: float, constraint: TrueFacts | None = None
) -> ScoredLoss:
  """Imitation of a teacher's reasonings: `reasoning_weight` x the mean nll of tokens + the answer's loss behind them, as in GR2 Eq 3.

  batch: besides `rankings [P, K]` or `targets [P, K]` (see `make_imitation_loss` and `make_target_loss`), `thoughts, thought_mask
  [P, 1, L]`, the reasonings with the token that ends them. `constraint`: what reasonings may say, if not anything.
  """

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    found = _think_again(model, params, batch, edges, opening, key, constraint)
    loss, metrics = (_imitate if "rankings" in batch else _approach)(found.scores[:, 0], batch)
    counted = batch["thought_mask"] * batch["weights"][:, None, None]
    nll = Metric(-jnp.sum(found.log_probs * counted), jnp.sum(counted))
    return loss + reasoning_weight * nll.sum / jnp.maximum(nll.count, 1e-9), metrics | {"nll_reasoning": nll}

  return loss_fn


def make_reasoned_target_loss(model: SlateScorer, opening: int) -> ScoredLoss:
  """`make_target_loss` of the scores behind each of the policy's reasonings, `thoughts, thought_mask [P, G, L]`, which learn nothing."""

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    slates = batch["slates"]
    scores = _think_again(model, params, batch, edges, opening, key).scores
    losses, learnt = listwise_cross_entropy(scores, batch["targets"][:, None], slates.real[:, None])
    return conclude(losses.mean(axis=1), batch["weights"] * learnt[:, 0], scores.mean(axis=1), slates)

  return loss_fn


def make_reasoned_reward_loss(
  model: SlateScorer,
  opening: int,
  reward: RewardConfig | RewardFn,
  *,
  rankings: int,
  temperature: float,
  divide_by: str,
  anchor: float,
  through: str = "whole",
  constraint: TrueFacts | None = None,
  truth_weight: float = 0.0,
  named_weight: float = 0.0,
) -> ScoredLoss:
  """Policy gradient on reasonings and on the `rankings` drawn after each of them, all judged by one call of the kernel.

  batch: besides `labels [P, K]`, `thoughts, thought_mask [P, G, L]`, the policy's own reasonings of this step, and `start_log_probs
  [P, G, L]` of their tokens where training began. The advantage of a reasoning is that of the mean reward of its rankings, so that the
  draw's noise is averaged out; a ranking's is its own among all of its slate. Groups whose raw rewards do not vary count neither in the
  loss nor in its denominator. `through` as in `make_reward_loss`. `anchor` times the tokens' divergence from the start,
  KL(policy || start), keeps reasonings legible. `constraint`: what reasonings may say, if not anything.
  To a reasoning's mean reward come `truth_weight` x the share of what it states that is true and `named_weight` where the candidate that
  it calls the best has the highest score behind it; with either the batch also holds `truth, named [P, G]`, see `make_truth_judge`.
  Metrics: besides, `entropy_reasoning` and `kl_start`, nats a token, and where the batch tells them `truth` and `named_first`.
  """

  def loss_fn(params: Any, batch: Mapping[str, Any], edges: jax.Array, *, key: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
    slates, labels = batch["slates"], batch["labels"]
    drawing, dropping = jax.random.split(key)
    found = _think_again(model, params, batch, edges, opening, dropping, constraint)
    scores = found.scores / temperature
    judged = judge_draws(drawing, scores, batch, reward, rankings=rankings, divide_by=divide_by)
    counted = batch["thought_mask"] * batch["weights"][:, None, None]
    bonus, told = jnp.zeros(found.scores.shape[:2]), {}
    if truth_weight or named_weight:
      first = jnp.argmax(jnp.where(slates.real[:, None], found.scores, OUT_OF_REACH), axis=-1)
      told = {"truth": batch["truth"], "named_first": (batch["named"] == first).astype(jnp.float32)}
      bonus = truth_weight * told["truth"] + named_weight * told["named_first"]
    thinking = judged.climb_thoughts(found.log_probs, counted, divide_by, bonus)
    log_ratio, tokens = found.log_probs - batch["start_log_probs"], jnp.sum(counted)
    # Apart from the reward's, since it holds also where a group has no signal.
    thinking += climb_back(found.log_probs, log_ratio, counted, anchor, _MOST_STRAYED)
    rewards, gains = judged.rewards, judged.climb(scores, slates, labels, through)
    ranking, metrics = conclude(-gains.mean(axis=(1, 2)), batch["weights"] * rewards.keep, scores.mean(axis=1), slates)
    lengths = jnp.repeat(batch["thought_mask"].sum(axis=-1), rankings, axis=1)
    written = jnp.sum(batch["thought_mask"])
    monitors = judged.monitor(lengths) | {
      "entropy_reasoning": Metric(jnp.sum(found.entropy), written),
      "kl_start": Metric(jnp.sum(log_ratio * counted), tokens),
    }
    monitors |= {name: Metric.of(values) for name, values in told.items()}
    return ranking - thinking, monitors | metrics | {"kept_fraction": Metric.of(rewards.keep)}

  return loss_fn


def _imitate(scores: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, Metric]]:
  """The loss of a teacher's rankings under scores `[P, K]`, and its metrics."""
  slates = batch["slates"]
  log_probs = ranking_log_probs(scores, batch["rankings"][:, None], slates.real)[:, 0]
  return conclude(-log_probs / jnp.maximum(slates.real.sum(axis=-1), 1), batch["weights"], scores, slates)


def _approach(scores: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, Metric]]:
  """The loss of scores `[P, K]` against targets, and its metrics."""
  losses, learnt = listwise_cross_entropy(scores, batch["targets"], batch["slates"].real)
  return conclude(losses, batch["weights"] * learnt, scores, batch["slates"])


class Judged(NamedTuple):
  """M rankings drawn after each of G reasonings (one where there is none), judged as one group of their slate.

  `rewards [P, G * M]`; `drawn [P, G, M, K]`, as `draw_rankings` gives them.
  """

  rewards: RewardTerms
  drawn: jax.Array
  named: jax.Array  # [P, G * M, K], the same with -1 behind a shorter slate's
  shown: jax.Array  # [P, K], the upstream order

  def climb(self, scores: jax.Array, slates: PackedSlates, labels: jax.Array, through: str) -> jax.Array:
    """Advantage x log-probability `[P, G, M]` under scores `[P, G, K]`: of the whole ranking, or through the place of the last positive.

    What stands behind the last positive earns nothing where a reward is of the positives' places, and its log-probability is noise.
    """
    last = labels[:, None] > 0 if through == "target" else None
    log_probs = ranking_log_probs(scores, self.drawn, slates.real[:, None], last)
    return self.rewards.advantages.reshape(log_probs.shape) * log_probs

  def climb_thoughts(self, log_probs: jax.Array, counted: jax.Array, divide_by: str, bonus: jax.Array | float = 0.0) -> jax.Array:
    """Advantage x log-probability of the reasonings, the mean of their tokens `counted [P, G, L]` in groups with a signal.

    `bonus [P, G]`: what a reasoning earns by itself, beside the mean of its rankings.
    """
    of_thought = self.rewards.total.reshape(*self.drawn.shape[:3]).mean(axis=-1) + bonus
    advantages, kept = group_advantages(of_thought, of_thought, divide_by=divide_by)
    mask = counted * kept[:, None, None]
    return jnp.sum(advantages[..., None] * log_probs * mask) / jnp.maximum(jnp.sum(mask), 1e-9)

  def monitor(self, lengths: jax.Array) -> dict[str, Metric]:
    """The monitors of all answers, of which the reasoning has `lengths [P, G * M]` tokens."""
    return monitor_answers(self.rewards, self.named, self.shown, lengths)


def judge_draws(
  key: jax.Array, scores: jax.Array, batch: Mapping[str, Any], reward: RewardConfig | RewardFn, *, rankings: int, divide_by: str
) -> Judged:
  """`rankings` drawn of each row of `scores [P, G, K]` for the batch's slates.

  Raises ConfigError for a reward of one's own that gives other shapes than one a ranking.
  """
  labels, real, (slots, group, size) = batch["labels"], batch["slates"].real, scores.shape
  drawn = jax.lax.stop_gradient(draw_rankings(key, scores, real[:, None], rankings))
  named = jnp.where(jnp.arange(size) < real.sum(axis=-1)[:, None, None, None], drawn, -1).reshape(slots, group * rankings, size)
  shown = jnp.broadcast_to(jnp.arange(size), labels.shape)
  if isinstance(reward, RewardConfig):
    rewards = compute_rewards(reward, named, labels, shown, mask=real, divide_by=divide_by)
  else:
    all_of = jnp.ones(named.shape[:2], bool), jnp.zeros(named.shape[:2], jnp.int32)
    earned = reward(Answers(named, *all_of), Slates(labels, shown, real, **{name: batch[name] for name in REWARDED if name in batch}))
    rewards = complete_rewards(check_shapes(earned, describe_reward(reward), named.shape[:2]), named, labels, shown, divide_by=divide_by)
  return Judged(rewards, drawn, named, shown)


def climb_back(log_probs: jax.Array, log_ratio: jax.Array, counted: jax.Array, weight: jax.Array | float, clip: float) -> jax.Array:
  """What is climbed so that reasonings come nearer to another policy, `log_ratio [P, G, L]` away: the mean of their `counted` tokens."""
  advantages = distilled_advantages(jnp.zeros(log_ratio.shape[:-1]), log_ratio, weight, clip)
  return jnp.sum(advantages * log_probs * counted) / jnp.maximum(jnp.sum(counted), 1e-9)


def _think_again(
  model: SlateScorer,
  params: Any,
  batch: Mapping[str, Any],
  edges: jax.Array,
  opening: int,
  key: jax.Array,
  constraint: TrueFacts | None = None,
) -> ThoughtScores:
  """What the policy makes of the batch's `thoughts, thought_mask [P, G, L]`, with dropout."""
  thoughts = Thoughts(batch["thoughts"], batch["thought_mask"])
  return score_thoughts(model, params, batch["slates"], edges, thoughts, opening, constraint=constraint, deterministic=False, key=key)


def score_slates(model: SlateScorer, params: Any, slates: PackedSlates, edges: jax.Array, key: jax.Array) -> jax.Array:
  """Scores `[P, K]`, with dropout."""
  return model.apply({"params": params}, slates, edges, deterministic=False, rngs={"dropout": key})


def conclude(losses: jax.Array, weights: jax.Array, scores: jax.Array, slates: PackedSlates) -> tuple[jax.Array, dict[str, Metric]]:
  """The weighted mean of losses `[P]`, and the metrics `loss` and `entropy` (of the first place, nats)."""
  total = jnp.sum(weights)
  loss = jnp.sum(losses * weights) / jnp.maximum(total, 1e-9)
  return loss, {"loss": Metric(jnp.sum(losses * weights), total), "entropy": Metric.of(first_place_entropy(scores, slates.real))}
