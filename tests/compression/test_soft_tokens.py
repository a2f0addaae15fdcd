"""Soft tokens: where they start, what they depend on, that a decoder reads them as it would read tokens, and their loss, which is 0 where
they say the same, falls, and moves nothing but the encoder."""

import functools

import jax
import numpy as np
import optax
import pytest

from gr2_jax.compression.soft_tokens import (
  SoftTokenBatch,
  SoftTokenEncoder,
  code_soft_tokens,
  encode_items,
  init_encoder,
  make_soft_token_loss,
  soft_token_ids,
)
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import init_state

VOCAB, LEVELS = 24, 3
DECODER = Decoder(preset("test", VOCAB))
SIDS = np.array([[3, 10, 17], [4, 9, 16]])

encode = jax.jit(encode_items, static_argnums=0)
init = jax.jit(init_encoder, static_argnums=(0, 2))


@functools.partial(jax.jit, static_argnames="method")
def apply(params, *call, **named):
  return DECODER.apply({"params": params}, *call, **named)


@pytest.fixture(scope="module")
def params():
  return init_params(DECODER, jax.random.key(0))


@pytest.fixture(scope="module")
def frozen(params):
  return jax.tree.map(lambda x: x * 3.0, params)


@pytest.mark.parametrize("per_item", [1, 2, 3, 4])
def test_they_start_as_means_of_their_codes(params, per_item):
  table = np.asarray(params["embedding"])
  parts = {1: [[0, 1, 2]], 2: [[0, 1], [2]], 3: [[0], [1], [2]], 4: [[0], [1], [2], [0]]}[per_item]
  expected = np.stack([np.stack([table[sid[part]].mean(axis=0) for part in parts]) for sid in SIDS])
  np.testing.assert_allclose(code_soft_tokens(table, SIDS, per_item), expected, rtol=1e-6)


@pytest.mark.parametrize("per_item", [1, 3])
def test_shapes_and_the_start_and_padding(params, per_item):
  encoder = SoftTokenEncoder(per_item, width=16)
  weights = init(encoder, jax.random.key(1), 32)
  random = np.random.default_rng(0)
  tokens, mask = random.integers(0, VOCAB, (2, 7)), np.arange(7) < np.array([[5], [7]])
  start = np.asarray(code_soft_tokens(params["embedding"], SIDS, per_item)).reshape(-1, 32)
  memory = encode(encoder, weights, params["embedding"], tokens, mask, SIDS)
  assert memory.shape == (2 * per_item, 32)
  np.testing.assert_allclose(memory, start, rtol=1e-6)

  weights["down"]["kernel"] = random.normal(size=weights["down"]["kernel"].shape).astype(np.float32)
  memory = np.asarray(encode(encoder, weights, params["embedding"], tokens, mask, SIDS))
  assert np.abs(memory - start).max() > 0.01
  padded = encode(encoder, weights, params["embedding"], np.where(mask, tokens, 1), mask, SIDS)
  np.testing.assert_allclose(padded, memory, rtol=1e-6)
  other = encode(encoder, weights, params["embedding"], np.where(mask, (tokens + 1) % VOCAB, tokens), mask, SIDS)
  assert np.abs(other - memory).max() > 1e-4


def test_ids_count_soft_tokens_item_by_item():
  assert soft_token_ids(np.array([0, 5]), 3).tolist() == [-1, -2, -3, -16, -17, -18]
  assert soft_token_ids([], 3).tolist() == []


def test_a_decoder_reads_them_as_it_reads_the_tokens_they_are_copies_of(params):
  prompts = np.array([[1, 3, 10, 17, 2, 5], [1, 7, 4, 9, 16, 2]], np.int32)
  mask = np.ones_like(prompts)
  memory = np.asarray(params["embedding"])[SIDS.reshape(-1)]
  short = prompts.copy()
  short[0, 1:4], short[1, 2:5] = soft_token_ids([0], 3), soft_token_ids([1], 3)
  generate = make_generate(RolloutConfig(DECODER, group=2, max_new_tokens=4, eos_id=0, pad_id=0))
  one = generate(params, prompts, mask, jax.random.key(3), Sampling.create())
  two = generate(params | {"memory": memory}, short, mask, jax.random.key(3), Sampling.create())
  np.testing.assert_array_equal(one.completions, two.completions)
  np.testing.assert_allclose(one.behaviour_logps, two.behaviour_logps, atol=1e-5)
  positions = np.broadcast_to(np.arange(6), prompts.shape)
  plain, _ = apply(params, prompts, positions, mask)
  with_memory, _ = apply(params | {"memory": memory * 5}, prompts, positions, mask)  # that nobody names
  np.testing.assert_allclose(plain, with_memory, rtol=1e-6)


def make_batch(per_item, words, weights=(1, 1)):
  """Two prompts with two items each: codes, and `words` more tokens an item, in the full prompt; soft tokens in the short one."""
  random = np.random.default_rng(1)
  sids = random.integers(0, VOCAB, (2, 2, LEVELS)).astype(np.int32)
  items = np.concatenate([sids, random.integers(0, VOCAB, (2, 2, words))], axis=2).astype(np.int32)
  full = np.concatenate([np.ones((2, 1)), items.reshape(2, -1), np.full((2, 1), 2)], axis=1).astype(np.int32)
  ids = soft_token_ids(np.arange(4), per_item).reshape(2, -1)
  short = np.concatenate([np.ones((2, 1)), ids, np.full((2, 1), 2)], axis=1).astype(np.int32)
  return SoftTokenBatch(
    prompts=full,
    prompt_mask=np.ones_like(full),
    short=short,
    short_mask=np.ones_like(short),
    completions=random.integers(0, VOCAB, (2, 4)).astype(np.int32),
    completion_mask=(np.arange(4) < np.array([[3], [4]])).astype(np.int32),
    item_tokens=items,
    item_mask=np.ones_like(items),
    sid_tokens=sids,
    weights=np.float32(weights),
  )


def start(per_item):
  encoder, optimizer = SoftTokenEncoder(per_item, 16), optax.adam(3e-3)
  state = init_state(init(encoder, jax.random.key(2), DECODER.config.width), optimizer)
  return state, jax.jit(make_update(optimizer, make_soft_token_loss(DECODER, encoder)))


@pytest.mark.slow
def test_codes_for_a_history_of_codes_lose_nothing(frozen):
  state, update = start(LEVELS)
  _, metrics = update(state, make_batch(LEVELS, words=0), frozen)
  assert float(metrics["loss"].mean()) == pytest.approx(0.0, abs=1e-6)
  assert float(metrics["loss"].count) == 7


def reverse_kl(frozen, batch):
  """For each prompt its sum over masked tokens, on its own in one plain forward pass, at the soft tokens that an encoder starts with."""
  memory = {"memory": np.asarray(frozen["embedding"])[batch.sid_tokens.reshape(-1, LEVELS)].mean(axis=1)}

  def log_probs(prompt, p, params):
    count = int(batch.completion_mask[p].sum())
    tokens = np.concatenate([prompt, batch.completions[p, : count - 1]])[None]
    hidden, _ = apply(params, tokens, np.arange(tokens.shape[1])[None], np.ones_like(tokens))
    return np.asarray(jax.nn.log_softmax(apply(params, hidden, method="logits")))[0, -count:]

  sums = []
  for p in range(2):
    teacher, student = log_probs(batch.prompts[p], p, frozen), log_probs(batch.short[p], p, frozen | memory)
    sums.append(np.sum(np.exp(student) * (student - teacher)))
  return np.array(sums)


def test_the_loss_is_the_reverse_kl_and_training_moves_the_encoder_alone(frozen):
  state, update = start(1)
  batch = make_batch(1, words=4)
  before = jax.tree.map(np.array, (frozen, state.params))
  _, weighed = update(state, make_batch(1, words=4, weights=(3, 0.5)), frozen)
  losses = []
  for _ in range(60):
    state, metrics = update(state, batch, frozen)
    losses.append(float(metrics["loss"].sum))
  expected = reverse_kl(frozen, batch)
  assert losses[0] == pytest.approx(expected.sum(), rel=1e-4)
  assert losses[-1] < 0.7 * losses[0]
  jax.tree.map(np.testing.assert_array_equal, frozen, before[0])
  moved = jax.tree.map(lambda x, y: np.any(np.asarray(x) != y), state.params, before[1])
  assert all(jax.tree.leaves(moved))
  assert int(state.step) == 60
  # A slate that weighs more counts more, in the loss and in what it is divided by.
  assert float(weighed["loss"].sum) == pytest.approx(3 * expected[0] + 0.5 * expected[1], rel=1e-4)
  assert float(weighed["loss"].count) == float(weighed["nll"].count) == 3 * 3 + 0.5 * 4
