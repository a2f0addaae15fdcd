"""Every family through what all policies need: a cache, prompts that a group shares, packed rows, sharded parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import CONFIGS, TOKENS, draw_params

from gr2_jax.models.cache import Prefix, empty_cache
from gr2_jax.models.transformer import Decoder, init_boxed
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.training.mesh import make_mesh, state_shardings


@pytest.fixture(scope="module", params=["llama", "gemma3"])  # all other tests are of Qwen3's kind
def model(request):
  decoder = Decoder(CONFIGS[request.param])
  return decoder, draw_params(decoder.config)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def _apply(decoder, params, *call, **named):
  return decoder.apply({"params": params}, *call, **named)


def _forward(model, tokens, positions=None, segments=None, **call):
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
  segments = np.ones_like(tokens) if segments is None else segments
  return _apply(*model, tokens, positions, segments, **call)


def _close(one, other):
  np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_a_cache_that_is_filled_token_by_token_gives_the_whole_rows_states(model):
  whole, _ = _forward(model, TOKENS)
  cache, parts = empty_cache(model[0].config, 2, 24), []
  for place in range(24):
    state, cache = _forward(model, TOKENS[:, place : place + 1], np.full((2, 1), place), cache=cache)
    parts.append(state)
  _close(np.concatenate(parts, axis=1), whole)


def test_rows_of_a_group_see_the_prompt_from_where_they_stand(model):
  """Suffixes of one prompt that stand at different places: a window ends elsewhere for each of them."""
  whole, (k, v) = _forward(model, TOKENS)
  prompt = Prefix(k[:, :, :14], v[:, :, :14], jnp.ones((2, 14), bool), jnp.broadcast_to(jnp.arange(14), (2, 14)))
  cache = empty_cache(model[0].config, 4, 10)
  for place in range(14, 24):  # the second row of each group waits for two tokens, as a row does that begins later
    tokens = np.stack([TOKENS[:, place], TOKENS[:, max(place - 2, 14)]], axis=1).reshape(4, 1)
    positions = np.tile([place, max(place - 2, 14)], 2)[:, None]
    seen = np.tile([1, int(place >= 16)], 2)[:, None]
    state, cache = _forward(model, tokens, positions, seen, prefix=prompt, cache=cache)
    _close(np.asarray(state)[::2, 0], np.asarray(whole)[:, place])
    if place >= 16:
      _close(np.asarray(state)[1::2, 0], np.asarray(whole)[:, place - 2])


def test_packed_rows_are_the_rows_alone(model):
  lengths, tokens = (9, 15), TOKENS.reshape(-1)[:24]
  segments = np.repeat([1, 2], lengths)[None]
  positions = np.concatenate([np.arange(n) for n in lengths])[None]
  packed, _ = _forward(model, tokens[None], positions, segments)
  parts = [_forward(model, part[None])[0][0] for part in np.split(tokens, [lengths[0]])]
  _close(packed[0], np.concatenate(parts))


def test_what_is_rolled_out_has_the_probabilities_of_a_full_forward(model):
  decoder, params = model
  generate = make_generate(RolloutConfig(decoder, group=3, max_new_tokens=12, eos_id=1, pad_id=0, rows=2))
  lengths = np.array([9, 12])
  mask = np.arange(12) < lengths[:, None]
  rollout = generate(params, np.where(mask, TOKENS[:, :12], 0), mask, jax.random.key(0), Sampling.create(temperature=1.0))
  for prompt in range(2):
    for member in range(3):
      written = np.asarray(rollout.completions[prompt, member])[np.asarray(rollout.completion_mask[prompt, member])]
      row = np.concatenate([TOKENS[prompt, : lengths[prompt]], written])
      padded = np.pad(row, (0, 24 - len(row)))[None]
      hidden, _ = _forward(model, padded)
      log_probs = np.asarray(jax.nn.log_softmax(_apply(decoder, params, hidden[0], method="logits")))
      expected = log_probs[lengths[prompt] - 1 + np.arange(len(written)), written]
      _close(np.asarray(rollout.behaviour_logps[prompt, member])[: len(written)], expected)


def test_states_on_a_cut_mesh_are_those_of_one_device(model):
  decoder, params = model
  mesh = make_mesh(2, 2, 2)
  shardings = state_shardings(jax.eval_shape(lambda key: init_boxed(decoder, key), jax.random.key(0)), mesh)
  alone, _ = _forward(model, TOKENS)
  with jax.set_mesh(mesh):
    cut, _ = _forward((decoder, jax.device_put(params, shardings)), np.tile(TOKENS, (2, 1)))
  _close(cut[:2], alone)
