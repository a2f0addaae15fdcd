"""Completions over a prompt that is computed once, against full sequences and against what the sampler says, in every layout of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.objectives.policy import DAPO, policy_loss
from gr2_jax.rollout.completions import completion_hidden, completion_log_probs
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.layout import pack, row_for_each
from gr2_jax.rollout.sampling import Sampling

VOCAB, EOS, PAD = 24, 1, 0
DECODER = Decoder(preset("test", VOCAB))
PACK = jax.jit(pack, static_argnums=1)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))


def _texts(seed, num_prompts=3, group=2, prompt_length=6, completion_length=4):
  """Random prompts and completions of random lengths; what stands under the masks is random too, and must not matter."""
  random = np.random.default_rng(seed)
  return (
    random.integers(0, VOCAB, (num_prompts, prompt_length)).astype(np.int32),
    np.arange(prompt_length) < random.integers(1, prompt_length + 1, (num_prompts, 1)),
    random.integers(0, VOCAB, (num_prompts, group, completion_length)).astype(np.int32),
    np.arange(completion_length) < random.integers(1, completion_length + 1, (num_prompts, group, 1)),
  )


def _unshared_log_probs(params, prompts, prompt_mask, completions, completion_mask):
  """The same by P * G plain rows, each its prompt followed by its completion."""
  num_prompts, group, length = completions.shape
  width = prompts.shape[1] + length
  tokens = np.zeros((num_prompts * group, width), np.int32)
  places = np.zeros((num_prompts * group, length), np.int32)
  sizes = np.zeros((num_prompts * group, 1), np.int32)
  for row in range(num_prompts * group):
    p, g = divmod(row, group)
    prompt, completion = prompts[p][prompt_mask[p]], completions[p, g][completion_mask[p, g]]
    tokens[row, : len(prompt) + len(completion)] = [*prompt, *completion]
    places[row] = len(prompt) - 1 + np.arange(length)
    sizes[row] = len(prompt) + len(completion)
  positions = np.broadcast_to(np.arange(width), tokens.shape)
  hidden, _ = DECODER.apply({"params": params}, tokens, positions, (positions < sizes).astype(np.int32))
  log_probs = jax.nn.log_softmax(DECODER.apply({"params": params}, hidden, method="logits"))
  log_probs = jnp.take_along_axis(log_probs, places[..., None], axis=1)
  chosen = jnp.take_along_axis(log_probs, completions.reshape(-1, length, 1), axis=-1)
  return chosen.reshape(completions.shape)


SHAPES = [
  {},
  {"num_prompts": 2, "group": 3, "prompt_length": 3, "completion_length": 7},
  pytest.param({"num_prompts": 4, "group": 1, "prompt_length": 5}, marks=pytest.mark.slow),
  {"num_prompts": 2, "completion_length": 1},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_rows", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_shared_prefix_equals_full_sequences_in_loss_and_gradient(params, shape, in_rows):
  texts = _texts(len(shape), **shape)
  mask, random = texts[3], np.random.default_rng(0)
  old_logps, advantages = (-3 + 0.3 * random.normal(size=mask.shape)).astype(np.float32), random.normal(size=mask.shape[:2])
  kept = mask * (np.arange(len(mask)) != 1)[:, None, None]
  layout = row_for_each(mask) if in_rows else None

  def loss(log_probs):
    found = policy_loss(log_probs, old_logps, advantages, kept, DAPO)
    return found.loss_sum / found.denominator

  shared = jax.jit(jax.value_and_grad(lambda params: loss(completion_log_probs(DECODER, params, *texts, layout=layout)[0])))
  unshared = jax.jit(jax.value_and_grad(lambda params: loss(_unshared_log_probs(params, *texts))))
  (found, gradient), (expected, expected_gradient) = shared(params), unshared(params)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  gradient, expected_gradient = jax.device_get((gradient, expected_gradient))
  norm = optax.global_norm(expected_gradient)
  difference = optax.global_norm(jax.tree.map(np.subtract, gradient, expected_gradient))
  assert norm > 0 and difference <= 1e-5 * norm


def test_log_probs_of_samples_equal_those_they_were_drawn_with(params):
  prompts, prompt_mask, *_ = _texts(0, num_prompts=6, prompt_length=20)
  run = make_generate(RolloutConfig(DECODER, group=4, max_new_tokens=12, eos_id=EOS, pad_id=PAD))
  again = jax.jit(
    lambda params, texts, temperature, layout: completion_log_probs(DECODER, params, *texts, temperature=temperature, layout=layout)
  )
  for temperature in (1.0, 1.7):
    rollout = run(params, prompts, prompt_mask, jax.random.key(0), Sampling.create(temperature))
    rollout = jax.device_get(rollout)
    assert len(np.unique(rollout.completion_mask.sum(axis=-1))) > 3, "completions of many lengths"
    texts = rollout.prompts, rollout.prompt_mask, rollout.completions, rollout.completion_mask
    packed, fits = PACK(rollout.completion_mask, 4)
    assert fits
    for layout in (None, packed):
      log_probs, entropy = again(params, texts, temperature, layout)
      np.testing.assert_allclose(np.where(rollout.completion_mask, log_probs - rollout.behaviour_logps, 0), 0, atol=1e-4)
      np.testing.assert_allclose(np.where(rollout.completion_mask, entropy - rollout.entropy, 0), 0, atol=1e-4)


def test_hidden_states_come_in_the_order_of_what_they_predict(params):
  texts = _texts(3)
  layout, _ = PACK(texts[3], 2)
  hidden = jax.jit(lambda layout: completion_hidden(DECODER, params, *texts, layout=layout))
  own, packed = hidden(None), hidden(layout)
  assert own.shape[:3] == texts[2].shape and packed.shape[:2] == (3, 2 + 2 * 3)
  shape, mask = own.shape[:3], texts[3][..., None]
  unpacked = jax.jit(jax.vmap(lambda values: layout.unpack(values, shape), in_axes=-1, out_axes=-1))(packed)
  np.testing.assert_allclose(np.where(mask, unpacked, 0), np.where(mask, own, 0), atol=1e-5)
