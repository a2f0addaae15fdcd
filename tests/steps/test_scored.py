"""Losses of scored answers by hand, and a reward that says who stands first teaches just that."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.errors import ConfigError
from gr2_jax.models.config import preset
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import init_params
from gr2_jax.objectives.plackett_luce import ranking_log_probs
from gr2_jax.rewards.own import Rewards
from gr2_jax.rewards.slate import SlateRewardConfig, make_slate_reward
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rollout.reasoned import Thoughts, score_thoughts
from gr2_jax.steps.scored import (
  THROUGH,
  Judged,
  make_imitation_loss,
  make_reasoned_imitation_loss,
  make_reasoned_reward_loss,
  make_reasoned_target_loss,
  make_reward_loss,
  make_target_loss,
)
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import init_state

P, K, F = 4, 4, 3
RANDOM = np.random.default_rng(0)
MODEL = SlateScorer(preset("test", 1), (F, 2))
EDGES = np.tile(np.float32([-2, 0, 2]), (F, 1))
KEY = jax.random.key(5)
REAL = np.ones((P, K), bool)
REAL[1, 3] = False


def pack(facts, real=REAL):
  nothing = np.zeros((len(facts), 0), bool)
  content = np.zeros((*real.shape, 0), np.float32)
  return PackedSlates(facts, real, nothing, content, content[:, :0])


BATCH = {
  "slates": pack(RANDOM.normal(size=(P, K, F)).astype(np.float32)),
  "weights": np.float32([1, 2, 0.5, 3]),
  "targets": np.float32([[0, 1, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0, 0, 0], [2, 0, 1, 1]]),
  "rankings": np.int32([[2, 0, 3, 1], [1, 2, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]),
  "labels": np.int32([[0, 1, 0, 0], [1, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 1]]),
}
REWARD = make_reward_loss(MODEL, RewardConfig(rank="auc"), group=6, temperature=0.5, divide_by="std")


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: 5 * x, init_params(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def scores(params):
  """`[P, K]` of the batch, at the padding 9, which no loss may read."""
  found = jax.jit(lambda slates: MODEL.apply({"params": params}, slates, EDGES))(BATCH["slates"])
  assert np.asarray(found).std(axis=1).min() > 1e-3
  return np.where(REAL, found, 9)


@pytest.fixture(scope="module")
def reward_loss(params):
  return jax.jit(lambda batch, key: jax.value_and_grad(REWARD, has_aux=True)(params, batch, EDGES, key=key))


def run(make, params, **changes):
  return jax.jit(lambda batch: make(MODEL)(params, batch, EDGES, key=KEY))(BATCH | changes)


def log_p(scores):
  return scores - np.log(np.exp(scores).sum())


def test_targets_are_learnt_by_cross_entropy_by_hand(params, scores):
  loss, metrics = run(make_target_loss, params)
  by_hand = np.zeros(P)
  for row in range(P):
    share = BATCH["targets"][row] / max(BATCH["targets"][row].sum(), 1)
    by_hand[row] = -(share[REAL[row]] * log_p(scores[row, REAL[row]])).sum()
  weights = np.array([1, 2, 0, 3])  # the third has nothing to learn
  assert loss == pytest.approx((by_hand * weights).sum() / 6, rel=1e-4)
  assert metrics["loss"].count == 6 and metrics["loss"].mean() == pytest.approx(float(loss), rel=1e-6)
  entropies = [-(np.exp(of) * of).sum() for of in (log_p(scores[row, REAL[row]]) for row in range(P))]
  assert metrics["entropy"].mean() == pytest.approx(np.mean(entropies), rel=1e-4)


def test_targets_need_not_sum_to_one(params):
  base = run(make_target_loss, params)[0]
  for factor in (3.0, 0.5):
    assert run(make_target_loss, params, targets=factor * BATCH["targets"])[0] == pytest.approx(float(base), rel=1e-5)


def test_rankings_are_learnt_by_their_log_probability_a_candidate_by_hand(params, scores):
  loss, metrics = run(make_imitation_loss, params)
  by_hand = []
  for row in range(P):
    placed = scores[row, BATCH["rankings"][row]][: REAL[row].sum()]
    by_hand.append(-sum(log_p(placed[place:])[0] for place in range(len(placed))) / len(placed))
  assert loss == pytest.approx((by_hand * BATCH["weights"]).sum() / 6.5, rel=1e-4)
  assert metrics["loss"].count == 6.5


@pytest.mark.parametrize("make", [make_target_loss, make_imitation_loss])
def test_weights_are_those_of_slates(params, make):
  rows = np.array([0, 1, 1, 3])
  twice = {name: np.asarray(BATCH[name])[rows] for name in ("targets", "rankings")}
  twice["slates"] = pack(BATCH["slates"].facts[rows], REAL[rows])
  weighed = run(make, params, weights=np.float32([1, 2, 0, 1]))[0]
  assert run(make, params, weights=np.ones(P, np.float32), **twice)[0] == pytest.approx(float(weighed), rel=1e-5)
  assert run(make, params, weights=np.float32([0.5, 1, 0, 0.5]))[0] == pytest.approx(float(weighed), rel=1e-5)
  assert abs(run(make, params)[0] - weighed) > 1e-3


def test_every_answer_is_valid_and_no_number_comes_from_the_padding(reward_loss):
  (loss, metrics), gradient = reward_loss(BATCH, KEY)
  assert metrics["valid_rate"].mean() == 1 and metrics["valid_rate"].count == P * 6
  assert {"reward", "recall@1", "near_identity_rate", "kept_fraction", "entropy"} <= metrics.keys()
  assert np.isfinite(loss) and optax.global_norm(gradient) > 0
  changed = BATCH["slates"].facts.copy()
  changed[1, 3] = 1.5
  other, of_changed = reward_loss(BATCH | {"slates": pack(changed)}, KEY)
  assert other[0] == pytest.approx(float(loss), abs=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), of_changed, gradient)


def test_a_group_without_a_signal_counts_nowhere(reward_loss):
  """The third slate has no target, so that all its rankings earn the same."""
  (loss, metrics), gradient = reward_loss(BATCH, KEY)
  assert metrics["kept_fraction"].sum <= 3 and metrics["kept_fraction"].count == P
  kept = metrics["loss"].count
  (heavy, of_heavy), gradient_of_heavy = reward_loss(BATCH | {"weights": np.float32([1, 2, 90, 3])}, KEY)
  assert heavy == loss and of_heavy["loss"].count == kept <= 6
  jax.tree.map(np.testing.assert_array_equal, gradient_of_heavy, gradient)
  (nothing, metrics), gradient = reward_loss(BATCH | {"labels": np.where(REAL, 0, -1).astype(np.int32)}, KEY)
  assert nothing == 0 and metrics["kept_fraction"].sum == metrics["loss"].count == 0 and optax.global_norm(gradient) == 0


def test_the_key_decides_the_rankings(reward_loss):
  rewards = [float(reward_loss(BATCH, jax.random.key(seed))[0][1]["rank_reward"].sum) for seed in (1, 1, 2, 3)]
  assert rewards[0] == rewards[1] and len(set(rewards)) > 1


def test_a_reward_of_the_target_s_place_puts_it_first():
  """One fact tells the target, two are noise."""
  random = np.random.default_rng(1)
  facts = random.normal(size=(64, K, F)).astype(np.float32)
  labels = (facts[..., 0] == facts[..., 0].max(axis=1, keepdims=True)).astype(np.int32)
  real = np.ones((64, K), bool)
  real[::4, 3], labels[::4, 3] = False, -1
  labels[::4, :3] = facts[::4, :3, 0] == facts[::4, :3, 0].max(axis=1, keepdims=True)
  batch = {"slates": pack(facts, real), "labels": labels, "weights": np.ones(64, np.float32)}
  loss = make_reward_loss(MODEL, RewardConfig(rank="promotion"), group=8, temperature=1.0, divide_by="none")
  optimizer = optax.adam(1e-2)
  update = jax.jit(make_update(optimizer, loss, whole_batch=lambda step, batch: {"key": jax.random.fold_in(KEY, step)}))
  state = init_state(init_params(MODEL, jax.random.key(0)), optimizer)
  firsts = []
  for _ in range(80):
    state, metrics = update(state, batch, jnp.asarray(EDGES))
    firsts.append(float(metrics["recall@1"].mean()))
  assert firsts[0] < 0.4 and firsts[-1] > 0.8
  scores = np.where(real, jax.jit(lambda: MODEL.apply({"params": state.params}, batch["slates"], EDGES))(), -np.inf)
  assert (np.take_along_axis(labels, scores.argmax(axis=1)[:, None], axis=1) == 1).mean() > 0.9


def test_through_the_target_the_gradient_is_the_same_in_expectation_with_less_noise():
  """Over all rankings of four, of a reward of the places of the two positives."""
  drawn = jnp.array(list(itertools.permutations(range(K))))[None, None]
  labels, scores = jnp.array([[0, 2, 0, 1]]), jnp.array([[[0.5, -0.3, 1.0, 0.2]]])
  slates = pack(np.zeros((1, K, F), np.float32), np.ones((1, K), bool))
  log_probs = ranking_log_probs(scores, drawn, slates.real[:, None])[0, 0]
  earned = jnp.sum(jnp.take_along_axis(labels, drawn[0, 0], axis=1) / jnp.log2(2.0 + jnp.arange(K)), axis=1)
  advantages = (earned - jnp.sum(jnp.exp(log_probs) * earned))[None]
  judged = Judged(types.SimpleNamespace(advantages=advantages), drawn, None, None)
  gradients = [jax.jacobian(lambda x, of=of: judged.climb(x, slates, labels, of)[0, 0])(scores)[:, 0, 0] for of in THROUGH]
  whole, target = (jnp.exp(log_probs) @ of for of in gradients)
  np.testing.assert_allclose(whole, target, atol=1e-6)
  assert jnp.abs(whole).max() > 0.1
  noises = [float(jnp.sum(jnp.exp(log_probs) @ of**2)) for of in gradients]
  assert noises[1] < noises[0]


@pytest.mark.parametrize("through", THROUGH)
def test_a_loss_climbs_what_it_is_told_to(params, through):
  drawing = {"group": 6, "temperature": 0.5, "divide_by": "std", "through": through}
  found = jax.jit(lambda: make_reward_loss(MODEL, RewardConfig(rank="auc"), **drawing)(params, BATCH, EDGES, key=KEY)[0])()
  whole = jax.jit(lambda: REWARD(params, BATCH, EDGES, key=KEY)[0])()
  assert (abs(float(found - whole)) < 1e-6) == (through == "whole")


def test_the_gain_of_one_label_in_all_places_is_the_kernel_s_ndcg(params):
  """So that a reward of whole slates without terms is the ranking reward where one label ranks a slate, draw by draw."""
  told = {"gains": BATCH["labels"].astype(np.float32)} | {
    name: np.zeros((P, K), kind) for name, kind in (("brands", np.int32), ("prices", np.float32), ("small", bool))
  }
  drawing = {"group": 6, "temperature": 0.5, "divide_by": "none"}
  rewards = RewardConfig(rank="ndcg", condition="naive", alpha=0.0), make_slate_reward(SlateRewardConfig(top=K))
  by_kernel, by_function = (
    jax.jit(lambda of=of: jax.value_and_grad(make_reward_loss(MODEL, of, **drawing), has_aux=True)(params, BATCH | told, EDGES, key=KEY))()
    for of in rewards
  )
  assert by_function[0][0] == pytest.approx(float(by_kernel[0][0]), rel=1e-4)
  assert by_function[0][1]["reward"].mean() == pytest.approx(float(by_kernel[0][1]["reward"].mean()), rel=1e-5)
  assert {name: float(of.count) for name, of in by_function[0][1].items()} == {
    name: float(of.count) for name, of in by_kernel[0][1].items()
  }
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), by_function[1], by_kernel[1])


def test_a_reward_of_another_shape_is_named(params):
  def wrong(answers, slates):
    return Rewards(answers.valid[:, 0], answers.valid[:, 0])

  with pytest.raises(ConfigError, match=r"wrong returned total \(4,\); its shape must be \(4, 6\)"):
    make_reward_loss(MODEL, wrong, group=6, temperature=1.0, divide_by="none")(params, BATCH, EDGES, key=KEY)


G, L, OPENING = 3, 4, 7
SPEAKING = SlateScorer(preset("test", 16), (F, 2))
THOUGHTS = {
  "thoughts": RANDOM.integers(16, size=(P, G, L)).astype(np.int32),
  "thought_mask": np.arange(L) < RANDOM.integers(1, L + 1, size=(P, G, 1)),
}
DRAWING = {"rankings": 64, "temperature": 1.0, "divide_by": "std"}


@pytest.fixture(scope="module")
def speaking():
  return jax.tree.map(lambda x: 5 * x, init_params(SPEAKING, jax.random.key(0)))


def test_a_teacher_s_reasoning_and_its_ranking_are_learnt_by_hand(speaking):
  taught = {name: array[:, :1] for name, array in THOUGHTS.items()}
  loss_fn = make_reasoned_imitation_loss(SPEAKING, OPENING, reasoning_weight=0.3)
  loss, metrics = jax.jit(lambda batch: loss_fn(speaking, batch, EDGES, key=KEY))(BATCH | taught)
  found = jax.jit(lambda slates: score_thoughts(SPEAKING, speaking, slates, EDGES, Thoughts(*taught.values()), OPENING))(BATCH["slates"])
  weights, rankings, scores = BATCH["weights"], BATCH["rankings"], np.asarray(found.scores)[:, 0]
  ranked = np.zeros(P)
  for row in range(P):
    own = scores[row, rankings[row][REAL[row][rankings[row]]]]
    ranked[row] = -sum(log_p(own[place:])[0] for place in range(len(own))) / len(own)
  counted = taught["thought_mask"][:, 0] * weights[:, None]
  nll = -(np.asarray(found.log_probs)[:, 0] * counted).sum() / counted.sum()
  assert loss == pytest.approx((ranked * weights).sum() / weights.sum() + 0.3 * nll, rel=1e-4)
  assert metrics["nll_reasoning"].mean() == pytest.approx(nll, rel=1e-4)


def test_scores_behind_own_reasonings_learn_targets_and_the_reasonings_nothing(speaking):
  loss_fn = make_reasoned_target_loss(SPEAKING, OPENING)
  loss, _ = jax.jit(lambda batch: loss_fn(speaking, batch, EDGES, key=KEY))(BATCH | THOUGHTS)
  found = jax.jit(lambda slates: score_thoughts(SPEAKING, speaking, slates, EDGES, Thoughts(*THOUGHTS.values()), OPENING))(BATCH["slates"])
  by_hand = np.zeros((P, G))
  for row in range(P):
    share = BATCH["targets"][row] / max(BATCH["targets"][row].sum(), 1e-9)
    for member in range(G):
      by_hand[row, member] = -(share[REAL[row]] * log_p(np.asarray(found.scores)[row, member, REAL[row]])).sum()
  assert loss == pytest.approx((by_hand.mean(axis=1) * [1, 2, 0, 3]).sum() / 6, rel=1e-4)


def test_reward_moves_reasonings_and_scores_alike(speaking):
  facts = np.zeros((P, K, F), np.float32)
  slates, labels = pack(facts, np.ones((P, K), bool)), np.eye(K, dtype=np.int32)[np.arange(P) % K]
  own = {"start_log_probs": np.zeros((P, G, L), np.float32)}
  batch = {"slates": slates, "weights": np.ones(P, np.float32), "labels": labels} | THOUGHTS | own
  loss_fn = make_reasoned_reward_loss(SPEAKING, OPENING, RewardConfig(rank="ndcg", condition="naive"), anchor=0.0, **DRAWING)
  gradient = jax.jit(lambda batch: jax.value_and_grad(loss_fn, has_aux=True)(speaking, batch, EDGES, key=KEY))
  (loss, metrics), grads = gradient(batch)
  assert np.isfinite(float(loss)) and metrics["valid_rate"].mean() == 1 and metrics["kept_fraction"].mean() == 1
  assert float(jnp.abs(grads["decoder"]["embedding"]).max()) > 0
  assert metrics["completion_length"].mean() == pytest.approx(THOUGHTS["thought_mask"].sum(axis=-1).mean(), rel=1e-6)


def test_without_a_signal_the_anchor_draws_reasonings_back_to_the_start(speaking):
  loss_fn = make_reasoned_reward_loss(SPEAKING, OPENING, RewardConfig(rank="ndcg", condition="naive"), anchor=0.5, **DRAWING)
  start = RANDOM.normal(-2, 1, size=(P, G, L)).astype(np.float32)
  batch = BATCH | THOUGHTS | {"labels": np.where(REAL, 0, -1).astype(np.int32), "start_log_probs": start}
  gradient = jax.jit(lambda batch: jax.value_and_grad(loss_fn, has_aux=True)(speaking, batch, EDGES, key=KEY))
  (loss, metrics), grads = gradient(batch)
  found = jax.jit(lambda slates: score_thoughts(SPEAKING, speaking, slates, EDGES, Thoughts(*THOUGHTS.values()), OPENING))(BATCH["slates"])
  log_probs, counted = np.asarray(found.log_probs), THOUGHTS["thought_mask"] * BATCH["weights"][:, None, None]
  ratio = log_probs - start
  assert metrics["kl_start"].mean() == pytest.approx((ratio * counted).sum() / counted.sum(), rel=1e-4)
  assert loss == pytest.approx(0.5 * (np.clip(ratio, -10, 10) * log_probs * counted).sum() / counted.sum(), rel=1e-4)
  assert float(jnp.abs(grads["decoder"]["embedding"]).max()) > 0
  at_start = gradient(batch | {"start_log_probs": log_probs})[1]
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(at_start)) < 1e-6


def test_truth_and_a_name_that_is_the_first_are_rewarded(speaking):
  """Of rankings that earn nothing, the bonus alone moves reasonings: towards those that are true, or that name the first."""
  labels = np.where(REAL, 0, -1).astype(np.int32)
  truth = np.float32([[1, 0, 0.5], [1, 1, 1], [0, 0, 1], [0.25, 0.75, 0.5]])
  scores = jax.jit(lambda: score_thoughts(SPEAKING, speaking, BATCH["slates"], EDGES, Thoughts(*THOUGHTS.values()), OPENING))().scores
  first = np.where(REAL[:, None], scores, -np.inf).argmax(axis=-1)
  named = np.where(truth > 0.5, first, -1).astype(np.int32)
  batch = BATCH | THOUGHTS | {"labels": labels, "start_log_probs": np.zeros((P, G, L), np.float32), "truth": truth, "named": named}
  make = functools.partial(
    make_reasoned_reward_loss, SPEAKING, OPENING, RewardConfig(rank="ndcg", condition="naive"), anchor=0.0, **DRAWING
  )

  def loss(batch, **weights):
    return jax.jit(lambda batch: make(**weights)(speaking, batch, EDGES, key=KEY))(batch)

  log_probs = jax.jit(lambda: score_thoughts(SPEAKING, speaking, BATCH["slates"], EDGES, Thoughts(*THOUGHTS.values()), OPENING).log_probs)()
  counted = THOUGHTS["thought_mask"] * BATCH["weights"][:, None, None]

  def by_hand(bonus):
    kept = bonus.std(axis=1) > 1e-6
    advantages = (bonus - bonus.mean(axis=1, keepdims=True)) / np.maximum(bonus.std(axis=1, keepdims=True), 1e-9)
    mask = counted * kept[:, None, None]
    return -(np.where(kept[:, None], advantages, 0)[..., None] * np.asarray(log_probs) * mask).sum() / mask.sum()

  found, metrics = loss(batch, truth_weight=2.0)
  assert metrics["truth"].mean() == pytest.approx(truth.mean()) and found == pytest.approx(by_hand(2 * truth), rel=1e-3)
  found, metrics = loss(batch, named_weight=3.0)
  assert metrics["named_first"].mean() == pytest.approx((truth > 0.5).mean())
  assert found == pytest.approx(by_hand(3.0 * (truth > 0.5)), rel=1e-3)
  found, metrics = loss(batch)
  assert float(found) == 0 and "truth" not in metrics
