"""Losses of direct answers against plain full sequences, and that the teacher is only read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.steps.direct import make_answer_loss, make_distillation_loss, make_listwise_loss
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import init_state

VOCAB, P, G, LC = 24, 2, 2, 4
DECODER = Decoder(preset("test", VOCAB))


@pytest.fixture(scope="module")
def params():
  return [jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(seed))) for seed in (0, 1)]


@pytest.fixture(scope="module")
def batch():
  random = np.random.default_rng(0)
  draw = lambda *shape: random.integers(1, VOCAB, shape).astype(np.int32)
  before = lambda lengths, width: (np.arange(width) < np.array(lengths)[..., None]).astype(np.int32)
  return {
    "prompts": draw(P, 5),
    "prompt_mask": before([5, 3], 5),
    "completions": draw(P, G, LC),
    "completion_mask": before([[4, 2], [1, 0]], LC),
    "teacher_prompts": draw(P, 7),
    "teacher_mask": before([7, 4], 7),
    "weights": np.ones(P, np.float32),
  }


@functools.partial(jax.jit, static_argnums=0)
def full_forward(decoder, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = decoder.apply({"params": params}, tokens, positions, jnp.ones_like(tokens))
  return jax.nn.log_softmax(decoder.apply({"params": params}, hidden, method="logits"))


def log_probs(params, prompts, prompt_mask, batch):
  """(distribution `[V]`, token) of every real completion token, by one plain row for each completion."""
  rows = np.zeros((P * G, prompts.shape[1] + LC), np.int32)
  places = []
  for row in range(P * G):
    p, g = divmod(row, G)
    prompt = prompts[p][prompt_mask[p] > 0]
    completion = batch["completions"][p, g][batch["completion_mask"][p, g] > 0]
    rows[row, : len(prompt) + len(completion)] = [*prompt, *completion]
    places += [(row, len(prompt) - 1 + i, token) for i, token in enumerate(completion)]
  of = full_forward(DECODER, params, rows)
  return jnp.stack([of[row, place] for row, place, _ in places]), np.array([token for *_, token in places])


def naive_kl(student, teacher, batch):
  log_p, _ = log_probs(student, batch["prompts"], batch["prompt_mask"], batch)
  log_q, _ = log_probs(teacher, batch["teacher_prompts"], batch["teacher_mask"], batch)
  return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


def assert_same(one, two):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), one, two)


def test_answers_are_learnt_by_their_mean_log_likelihood(params, batch):
  def naive(student):
    of, tokens = log_probs(student, batch["prompts"], batch["prompt_mask"], batch)
    return -jnp.mean(of[jnp.arange(len(tokens)), tokens])

  loss_fn = make_answer_loss(DECODER, None)
  (loss, _), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params[0], batch)
  assert_same((loss, gradient), jax.value_and_grad(naive)(params[0]))


def test_distillation_is_the_reverse_kl_to_what_the_teacher_says_after_its_own_prompt(params, batch):
  loss_fn = make_distillation_loss(DECODER, DECODER, None)
  (loss, metrics), gradients = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 2), has_aux=True))(params[0], batch, params[1])
  assert metrics["loss"].count == 7
  assert_same((loss, gradients[0]), jax.value_and_grad(naive_kl)(params[0], params[1], batch))
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients[1]))


def test_a_student_that_sees_what_its_equal_teacher_sees_has_nothing_to_learn(params, batch):
  alike = batch | {"teacher_prompts": batch["prompts"], "teacher_mask": batch["prompt_mask"]}
  loss_fn = make_distillation_loss(DECODER, DECODER, None)
  (loss, _), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params[0], alike, params[0])
  assert abs(loss) < 1e-6 and optax.global_norm(gradient) < 1e-4


LOSSES = {
  "answers": (make_answer_loss(DECODER, None), ()),
  "distillation": (make_distillation_loss(DECODER, DECODER, None), (1,)),
  "scores": (make_listwise_loss(DECODER, (2, 3), None), ()),
}


@pytest.mark.parametrize("name", ["answers", *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSES if name != "answers")])
def test_a_slate_of_weight_two_is_the_slate_given_twice(params, batch, name):
  loss_fn, teachers = LOSSES[name]
  of_loss = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  references, labels = np.array([[[10, 11], [10, 12], [13, 11]]] * P, np.int32), np.array([[0, 1, 0], [2, 0, 1]], np.int32)
  batch = batch | {"references": references, "labels": labels}

  def found(**changes):
    (loss, _), gradient = of_loss(params[0], batch | changes, *(params[t] for t in teachers))
    return loss, gradient

  rows = np.array([0, 1, 1])
  weighed = found(weights=np.float32([1, 2]))
  assert_same(weighed, found(**{key: value[rows] for key, value in batch.items()}))
  assert_same(found(weights=np.float32([0.25, 0.25])), found())
  assert abs(weighed[0] - found()[0]) > 1e-3


def test_a_slate_without_a_positive_counts_for_nothing_whatever_it_weighs(params, batch):
  loss_fn = jax.jit(make_listwise_loss(DECODER, (2, 3), None))
  scored = {
    "prompts": batch["prompts"],
    "prompt_mask": batch["prompt_mask"],
    "references": np.array([[[10, 11], [10, 12]]] * P, np.int32),
    "labels": np.array([[0, 1], [0, 0]], np.int32),
  }
  one, two = (loss_fn(params[0], scored | {"weights": np.float32(weights)}) for weights in ([1, 1], [1, 9]))
  assert one[0] == two[0] > 0 and two[1]["loss"].count == 1


def test_listwise_training_learns_an_order_by_heart():
  random = np.random.default_rng(1)
  batch = {
    "prompts": random.integers(4, VOCAB, (6, 3)).astype(np.int32),
    "prompt_mask": np.ones((6, 3), np.int32),
    "references": np.tile(np.array([[10, 11], [10, 12], [13, 11], [14, 15]], np.int32), (6, 1, 1)),
    "labels": np.eye(4, dtype=np.int32)[[0, 1, 2, 3, 1, 2]],
    "weights": np.ones(6, np.float32),
  }
  batch["references"][5, 3], batch["labels"][5, 3] = -1, -1
  optimizer = optax.adam(1e-2)
  update = jax.jit(make_update(optimizer, make_listwise_loss(DECODER, (2, 3), None)))
  state = init_state(init_params(DECODER, jax.random.key(0)), optimizer)
  losses = []
  for _ in range(40):
    state, metrics = update(state, batch)
    losses.append(float(metrics["loss"].mean()))
  assert metrics["recall@1"].mean() == 1 and losses[0] > 1 and losses[-1] < 0.2
