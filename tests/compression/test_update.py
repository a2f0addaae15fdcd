"""The slot encoder's update: its loss is 0 where slots say the same, it falls, and nothing but the encoder moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr2_jax.compression.encoder import SlotEncoder, init_encoder, slot_ids
from gr2_jax.compression.update import SlotBatch, make_slot_update
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.training.state import init_state

VOCAB, LEVELS = 24, 3
DECODER = Decoder(preset("test", VOCAB))


@pytest.fixture(scope="module")
def frozen():
  return jax.tree.map(lambda x: x * 3.0, init_params(DECODER, jax.random.key(0)))


def make_batch(slots, words):
  """Two prompts with two items each: codes, and `words` more tokens an item, in the full prompt; slots in the short one."""
  random = np.random.default_rng(1)
  sids = random.integers(0, VOCAB, (2, 2, LEVELS)).astype(np.int32)
  items = np.concatenate([sids, random.integers(0, VOCAB, (2, 2, words))], axis=2).astype(np.int32)
  full = np.concatenate([np.ones((2, 1)), items.reshape(2, -1), np.full((2, 1), 2)], axis=1).astype(np.int32)
  ids = slot_ids(np.arange(4), slots).reshape(2, -1)
  short = np.concatenate([np.ones((2, 1)), ids, np.full((2, 1), 2)], axis=1).astype(np.int32)
  completions = random.integers(0, VOCAB, (2, 4)).astype(np.int32)
  mask = (np.arange(4) < np.array([[3], [4]])).astype(np.int32)
  return SlotBatch(full, np.ones_like(full), short, np.ones_like(short), completions, mask, items, np.ones_like(items), sids)


def start(slots):
  encoder, optimizer = SlotEncoder(slots, 16), optax.adam(3e-3)
  state = init_state(init_encoder(encoder, jax.random.key(2), DECODER.config.width), optimizer)
  return state, jax.jit(make_slot_update(DECODER, encoder, optimizer))


@pytest.mark.slow
def test_slots_that_are_the_codes_of_a_history_of_codes_lose_nothing(frozen):
  state, update = start(LEVELS)
  _, metrics = update(state, make_batch(LEVELS, words=0), frozen)
  assert float(metrics["loss"].mean()) == pytest.approx(0.0, abs=1e-6)
  assert float(metrics["loss"].count) == 7


def reverse_kl(frozen, batch):
  """Of the masked tokens, each prompt on its own in one plain forward pass, at the slots that an encoder starts with."""
  memory = {"memory": frozen["embedding"][batch.sid_tokens.reshape(-1, LEVELS)].mean(axis=1)}

  def log_probs(prompt, p, params):
    count = int(batch.completion_mask[p].sum())
    tokens = np.concatenate([prompt, batch.completions[p, : count - 1]])[None]
    hidden, _ = DECODER.apply({"params": params}, tokens, np.arange(tokens.shape[1])[None], np.ones_like(tokens))
    return jax.nn.log_softmax(DECODER.apply({"params": params}, hidden, method="logits"))[0, -count:]

  total = 0.0
  for p in range(2):
    teacher, student = log_probs(batch.prompts[p], p, frozen), log_probs(batch.short[p], p, frozen | memory)
    total += float(jnp.sum(jnp.exp(student) * (student - teacher)))
  return total


def test_the_loss_is_the_reverse_kl_and_training_moves_the_encoder_alone(frozen):
  state, update = start(1)
  batch = make_batch(1, words=4)
  before = jax.tree.map(np.array, (frozen, state.params))
  losses = []
  for _ in range(60):
    state, metrics = update(state, batch, frozen)
    losses.append(float(metrics["loss"].sum))
  assert losses[0] == pytest.approx(reverse_kl(frozen, batch), rel=1e-4)
  assert losses[-1] < 0.7 * losses[0]
  jax.tree.map(np.testing.assert_array_equal, frozen, before[0])
  moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), state.params, before[1])
  assert all(jax.tree.leaves(moved))
  assert int(state.step) == 60
