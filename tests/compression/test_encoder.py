"""Soft slots: where they start, what they depend on, and that a decoder reads them as it would read tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.compression.encoder import SlotEncoder, code_slots, encode_items, init_encoder, slot_ids
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.generate import RolloutConfig, generate
from gr2_jax.rollout.sampling import Sampling

VOCAB = 24
DECODER = Decoder(preset("test", VOCAB))
SIDS = np.array([[3, 10, 17], [4, 9, 16]])


@pytest.fixture(scope="module")
def params():
  return init_params(DECODER, jax.random.key(0))


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_slots_start_as_means_of_their_codes(params, slots):
  table = params["embedding"]
  parts = {1: [[0, 1, 2]], 2: [[0, 1], [2]], 3: [[0], [1], [2]], 4: [[0], [1], [2], [0]]}[slots]
  expected = np.stack([np.stack([table[sid[part]].mean(axis=0) for part in parts]) for sid in SIDS])
  np.testing.assert_allclose(code_slots(table, SIDS, slots), expected, rtol=1e-6)


@pytest.mark.parametrize("slots", [1, 3])
def test_shapes_and_the_start_and_padding(params, slots):
  encoder = SlotEncoder(slots, width=16)
  weights = init_encoder(encoder, jax.random.key(1), 32)
  random = np.random.default_rng(0)
  tokens, mask = random.integers(0, VOCAB, (2, 7)), np.arange(7) < np.array([[5], [7]])
  memory = encode_items(encoder, weights, params["embedding"], tokens, mask, SIDS)
  assert memory.shape == (2 * slots, 32)
  np.testing.assert_array_equal(memory, code_slots(params["embedding"], SIDS, slots).reshape(-1, 32))

  weights["down"]["kernel"] = jax.random.normal(jax.random.key(2), weights["down"]["kernel"].shape)
  memory = encode_items(encoder, weights, params["embedding"], tokens, mask, SIDS)
  assert np.abs(memory - code_slots(params["embedding"], SIDS, slots).reshape(-1, 32)).max() > 0.01
  padded = encode_items(encoder, weights, params["embedding"], np.where(mask, tokens, 1), mask, SIDS)
  np.testing.assert_allclose(padded, memory, rtol=1e-6)
  other = encode_items(encoder, weights, params["embedding"], np.where(mask, (tokens + 1) % VOCAB, tokens), mask, SIDS)
  assert np.abs(other - memory).max() > 1e-4


def test_ids_count_slots_item_by_item():
  assert slot_ids(np.array([0, 5]), 3).tolist() == [-1, -2, -3, -16, -17, -18]
  assert slot_ids(np.array([], int), 3).tolist() == []


def test_a_decoder_reads_slots_as_it_reads_the_tokens_they_are_copies_of(params):
  prompts = np.array([[1, 3, 10, 17, 2, 5], [1, 7, 4, 9, 16, 2]], np.int32)
  mask = np.ones_like(prompts)
  memory = params["embedding"][SIDS.reshape(-1)]
  short = prompts.copy()
  short[0, 1:4], short[1, 2:5] = slot_ids(np.array([0]), 3), slot_ids(np.array([1]), 3)
  config = RolloutConfig(DECODER, group=2, max_new_tokens=4, eos_id=0, pad_id=0)
  one = generate(config, params, prompts, mask, jax.random.key(3), Sampling.create())
  two = generate(config, params | {"memory": memory}, short, mask, jax.random.key(3), Sampling.create())
  np.testing.assert_array_equal(one.completions, two.completions)
  np.testing.assert_allclose(one.behaviour_logps, two.behaviour_logps, atol=1e-5)
  positions = jnp.broadcast_to(jnp.arange(6), prompts.shape)
  plain, _ = DECODER.apply({"params": params}, prompts, positions, mask)
  with_memory, _ = DECODER.apply({"params": params | {"memory": memory * 5}}, prompts, positions, mask)  # that nobody names
  np.testing.assert_array_equal(plain, with_memory)
