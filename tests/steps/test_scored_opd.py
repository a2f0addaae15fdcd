"""Distillation of Plackett-Luce policies against brute force over all rankings, and students that learn what their teacher knows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import init_params
from gr2_jax.objectives.distillation import DistillationConfig
from gr2_jax.objectives.plackett_luce import ranking_log_probs
from gr2_jax.rewards.verifiable import RewardConfig
from gr2_jax.rollout.reasoned import Thoughts, follow_thoughts, to_token_logits
from gr2_jax.steps.opd import OpdConfig
from gr2_jax.steps.scored_opd import distil_rankings, make_reasoned_opd_loss, make_scored_opd_loss
from gr2_jax.steps.start import start_fresh
from gr2_jax.steps.update import make_update
from gr2_jax.training.mesh import init_sharded, jit_update, make_mesh, put_replicated
from gr2_jax.training.state import init_state

FORMS = ("exact", "per_token")
MASK = jnp.array([[True, True, True, False], [True, True, True, True]])
SCORES = jnp.array([[0.3, -1.0, 1.2, 50.0], [0.0, 0.5, 2.0, -1.0]])
TEACHER_SCORES = jnp.array([[1.0, -0.5, -1.2, -9.0], [-1.0, 2.0, 0.3, 0.0]])
ALL = jnp.array([[[*order, 3] for order in itertools.permutations(range(3))] * 4, list(itertools.permutations(range(4)))])  # [2, 24, 4]


def expect(values, scores=SCORES):
  """The mean `[2]` of values `[2, 24]` of the rankings ALL, each by its probability under the student, which gets no gradient."""
  probabilities = jnp.exp(ranking_log_probs(scores, ALL, MASK)) / jnp.array([[4.0], [1.0]])  # the first slate's six stand there four times
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  return jnp.sum(probabilities * values, axis=1)


def distil(scores, teacher_scores, form, **config):
  return distil_rankings(scores, teacher_scores, ALL, MASK, jnp.zeros((2, 24)), 1.0, DistillationConfig(kl=form, **config))


@pytest.mark.parametrize("form", FORMS)
def test_equal_policies_have_no_divergence_and_no_gradient(form):
  shifted = jnp.where(MASK, SCORES + 3.0, -7.0)
  np.testing.assert_allclose(distil(SCORES, shifted, form)[1], 0, atol=1e-5)
  gradient = jax.grad(lambda scores: distil(scores, shifted, form)[0].sum())(SCORES)
  np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_divergence_is_that_of_all_rankings(form):
  whole = ranking_log_probs(SCORES, ALL, MASK) - ranking_log_probs(TEACHER_SCORES, ALL, MASK)
  found = expect(distil(SCORES, TEACHER_SCORES, form)[1])
  assert (found > 0.5).all()
  np.testing.assert_allclose(found, expect(whole), rtol=1e-5)


def by_hand(scores, row):
  """The mean over the student's rankings of the KL at their places, in which what came before has no part in the gradient."""
  size, total = (3, 4)[row], 0.0
  for order in itertools.permutations(range(size)):
    probability = jax.lax.stop_gradient(jnp.exp(ranking_log_probs(scores[row], jnp.array([[*order, *range(size, 4)]]), MASK[row])[0]))
    for place in range(size):
      left = jnp.array(order[place:])
      log_p, log_q = jax.nn.log_softmax(scores[row, left]), jax.nn.log_softmax(TEACHER_SCORES[row, left])
      total += probability * jnp.sum(jnp.exp(log_p) * (log_p - log_q))
  return total


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_places_of_all_rankings(form):
  probabilities = jax.lax.stop_gradient
  found = jax.grad(lambda scores: expect(distil(scores, TEACHER_SCORES, form)[0], probabilities(scores)).sum())(SCORES)
  expected = jax.grad(lambda scores: by_hand(scores, 0) + by_hand(scores, 1))(SCORES)
  assert jnp.abs(expected).max() > 0.1 and found[0, 3] == 0
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_reward_s_part_is_that_of_the_whole_ranking_and_the_clip_bounds_a_place(form):
  advantages = jnp.linspace(-1, 1, 48).reshape(2, 24)
  config = DistillationConfig(kl=form)
  found = jax.grad(lambda scores: distil_rankings(scores, TEACHER_SCORES, ALL, MASK, advantages, 0.0, config)[0].sum())(SCORES)
  expected = jax.grad(lambda scores: -(advantages * ranking_log_probs(scores, ALL, MASK)).sum())(SCORES)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  far = jax.grad(lambda scores: distil(scores, 1e4 * TEACHER_SCORES, form, clip=0.5)[0].sum())(SCORES)
  assert 0 < jnp.abs(far).max() < 0.5 * 24 * 4


P, K, F, G, L, OPENING = 8, 4, 3, 3, 4, 7
RANDOM = np.random.default_rng(0)
EDGES = jnp.asarray(np.tile(np.float32([-2, 0, 2]), (F, 1)))
REAL = np.ones((P, K), bool)
REAL[1, 3] = False
STUDENT = SlateScorer(preset("test", 16), (F, 2))
TEACHER = SlateScorer(preset("micro", 16), (2, 2))  # wider, and it reads other facts
NOTHING = np.zeros((P, K, 0), np.float32)
BATCH = {
  "slates": PackedSlates(RANDOM.normal(size=(P, K, F)).astype(np.float32), REAL, NOTHING[:, 0] > 0, NOTHING, NOTHING[:, :0]),
  "weights": np.float32([1, 2, 0.5, 3, 1, 1, 1, 1]),
  "labels": np.where(REAL, np.eye(K, dtype=np.int32)[RANDOM.integers(3, size=P)], -1),
  "teacher_scores": RANDOM.normal(size=(P, K)).astype(np.float32),
  "teacher_facts": RANDOM.normal(size=(P, K, 2)).astype(np.float32),
  "thoughts": RANDOM.integers(16, size=(P, G, L)).astype(np.int32),
  "thought_mask": np.arange(L) < RANDOM.integers(1, L + 1, size=(P, G, 1)),
}
REWARD = RewardConfig(rank="ndcg", condition="naive")
PURE = OpdConfig(DistillationConfig(beta=1.0, beta_end=1.0), reward_weight=0.0)


def update_of(loss, optimizer):
  whole_batch = lambda step, batch: {"key": jax.random.fold_in(jax.random.key(1), step), "beta": jnp.float32(1.0)}
  return make_update(optimizer, loss, whole_batch=whole_batch)


@pytest.mark.parametrize("form", FORMS)
def test_pure_distillation_brings_the_student_s_scores_to_the_teacher_s(form):
  optimizer, config = optax.adam(3e-3), OpdConfig(DistillationConfig(kl=form), reward_weight=0.0)
  update = jax.jit(update_of(make_scored_opd_loss(STUDENT, config, REWARD, group=16), optimizer))
  state, kls = init_state(init_params(STUDENT, jax.random.key(0)), optimizer), []
  for _ in range(120):
    state, metrics = update(state, BATCH, EDGES)
    kls.append(float(metrics["reverse_kl"].mean()))
  assert np.mean(kls[:3]) > 0.3 and np.mean(kls[-10:]) < 0.2 * np.mean(kls[:3])
  assert metrics["valid_rate"].mean() == 1 and {"reward", "recall@1", "entropy", "beta", "loss"} <= metrics.keys()


@pytest.fixture(scope="module")
def params():
  """(student's, teacher's), far enough from uniform."""
  return tuple(jax.tree.map(lambda x: 4 * x, init_params(of, jax.random.key(key))) for key, of in enumerate((STUDENT, TEACHER)))


TEACHER_EDGES = EDGES[:2]


ALONE = BATCH["slates"]._replace(real=REAL & (np.arange(K) < 1))  # one candidate a slate: only the reasonings have something to learn


def tokens_of(model, params, facts, edges):
  """Log-probabilities of all tokens `[P, G, L, V]` at the places of the reasonings about ALONE."""
  thoughts, slates = Thoughts(BATCH["thoughts"], BATCH["thought_mask"]), ALONE._replace(facts=facts)
  states = jax.jit(lambda: follow_thoughts(model, params, slates, edges, thoughts, OPENING))()
  return np.asarray(jax.nn.log_softmax(to_token_logits(model, params)(states.hidden)))


@pytest.mark.parametrize("form", FORMS)
def test_reasonings_are_drawn_to_the_teacher_s_tokens_by_hand(params, form):
  student, teacher = params
  config = OpdConfig(DistillationConfig(kl=form), reward_weight=0.0)
  loss_fn = make_reasoned_opd_loss(STUDENT, TEACHER, OPENING, config, REWARD, rankings=4)
  call = jax.jit(lambda batch, beta: loss_fn(student, batch, EDGES, teacher, TEACHER_EDGES, key=jax.random.key(2), beta=beta))
  log_p, log_q = tokens_of(STUDENT, student, ALONE.facts, EDGES), tokens_of(TEACHER, teacher, BATCH["teacher_facts"], TEACHER_EDGES)
  mask, counted = BATCH["thought_mask"], BATCH["thought_mask"] * BATCH["weights"][:, None, None]
  chosen, taught = (np.take_along_axis(x, BATCH["thoughts"][..., None], -1)[..., 0] for x in (log_p, log_q))
  kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1) if form == "exact" else chosen - taught
  climbed = kl if form == "exact" else np.clip(kl, -10, 10) * chosen
  loss, metrics = call(BATCH | {"slates": ALONE}, 0.7)
  assert loss == pytest.approx(0.7 * (climbed * counted).sum() / counted.sum(), rel=1e-3)
  assert metrics["reverse_kl_reasoning"].mean() == pytest.approx(kl[mask].mean(), rel=1e-3)
  assert metrics["reverse_kl"].mean() == 0 and metrics["completion_length"].mean() == pytest.approx(mask.sum(axis=-1).mean(), rel=1e-6)
  of_rankings = call(BATCH, 0.7)[1]["reverse_kl"].mean()
  assert abs(float(of_rankings)) > 0.01


def test_a_teacher_that_is_the_student_teaches_nothing(params):
  student, _ = params
  loss_fn = make_reasoned_opd_loss(STUDENT, STUDENT, OPENING, PURE, REWARD, rankings=4)
  own = BATCH | {"teacher_facts": BATCH["slates"].facts}
  call = lambda x: loss_fn(x, own, EDGES, student, EDGES, key=jax.random.key(2), beta=jnp.float32(1.0))
  (loss, metrics), gradient = jax.jit(jax.value_and_grad(call, has_aux=True))(student)
  assert abs(float(loss)) < 1e-4 and abs(float(metrics["reverse_kl"].mean())) < 1e-4
  assert optax.global_norm(gradient) < 1e-2


@pytest.mark.slow
def test_a_step_on_a_mesh_equals_one_device():
  loss, optimizer, results = make_reasoned_opd_loss(STUDENT, TEACHER, OPENING, PURE, REWARD, rankings=4), optax.sgd(1.0), []
  for mesh in (make_mesh(1, 1, 1, devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
    state, shardings = start_fresh(STUDENT, optimizer, jax.random.key(7), mesh)
    teacher, _ = init_sharded(lambda key: TEACHER.init(key, *TEACHER.example())["params"], jax.random.key(8), mesh)
    edges, teacher_edges = put_replicated((EDGES, TEACHER_EDGES), mesh)
    update = jit_update(update_of(loss, optimizer), mesh, shardings, frozen=(edges, teacher, teacher_edges))
    state, metrics = update(state, BATCH)
    results.append(jax.device_get((state.params, metrics)))
  (expected, expected_metrics), (actual, metrics) = results
  for name in ("loss", "reverse_kl_reasoning", "grad_norm"):
    np.testing.assert_allclose(metrics[name].mean(), expected_metrics[name].mean(), rtol=1e-3)
  norm = expected_metrics["grad_norm"].sum
  assert optax.global_norm(jax.tree.map(np.subtract, actual, expected)) <= 1e-3 * norm
