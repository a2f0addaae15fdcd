"""Block influence against hidden states taken layer by layer, and pruned parameters against layers that do nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_families import CONFIGS, TOKENS, draw_params

from gr2_jax.models.config import preset
from gr2_jax.models.pruning import block_influence, choose_layers, prune_decoder, prune_params, scored_block_influence
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import Decoder, init_params

VOCAB = 24
DECODER = Decoder(dataclasses.replace(preset("test", VOCAB), num_layers=4))


@pytest.fixture(scope="module")
def inputs():
  random = np.random.default_rng(0)
  mask = np.arange(7) < np.array([[7], [4], [2]])
  return random.integers(0, VOCAB, (3, 7)), mask, jax.tree.map(lambda x: 2 * x, jax.device_get(init_params(DECODER, jax.random.key(0))))


def silence(params, layers):
  """Layers whose two outputs are 0, so that they hand on what they are given."""
  speaks = ~np.isin(np.arange(len(params["layers"]["out"]["kernel"])), layers)
  scaled = lambda kernel: kernel * speaks.reshape(-1, *[1] * (kernel.ndim - 1))
  changed = {name: {"kernel": scaled(params["layers"][name]["kernel"])} for name in ("out", "down")}
  return {**params, "layers": {**params["layers"], **changed}}


influence = jax.jit(block_influence, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(decoder, params, tokens, mask):
  positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  return decoder.apply({"params": params}, tokens, positions, mask.astype(np.int32))[0]


def test_influence_is_the_mean_change_of_direction_at_real_tokens(inputs):
  tokens, mask, params = inputs
  # The final norm keeps directions when its scale is 1, so prefixes of the decoder show every layer's output.
  flat = {**params, "final_norm": {"scale": np.ones_like(params["final_norm"]["scale"])}}
  states = [np.asarray(params["embedding"])[tokens]]
  states += [np.asarray(hidden_states(prune_decoder(DECODER, range(n)), prune_params(flat, range(n)), tokens, mask)) for n in range(1, 5)]
  unit = [(x / np.linalg.norm(x, axis=-1, keepdims=True))[mask] for x in states]
  expected = [1 - np.sum(x * y, axis=-1).mean() for x, y in zip(unit, unit[1:], strict=False)]
  changes, count = influence(DECODER, params, tokens, mask)
  assert count == mask.sum()
  np.testing.assert_allclose(changes / count, expected, rtol=1e-4)


def test_layers_that_do_nothing_are_found_and_their_removal_changes_nothing(inputs):
  tokens, mask, params = inputs
  quiet = silence(params, [1, 2])
  changes, _ = influence(DECODER, quiet, tokens, mask)
  np.testing.assert_allclose(np.asarray(changes)[[1, 2]], 0.0, atol=1e-5)
  kept = choose_layers(changes, 2)
  assert kept == [0, 3]
  whole = hidden_states(DECODER, quiet, tokens, mask)
  pruned = hidden_states(prune_decoder(DECODER, kept), prune_params(quiet, kept), tokens, mask)
  np.testing.assert_allclose(np.asarray(whole)[mask], np.asarray(pruned)[mask], atol=1e-5)


@pytest.mark.parametrize("content", [0, 5])
def test_layers_of_a_scorer_that_do_nothing_are_found_and_their_removal_changes_no_score(content):
  random = np.random.default_rng(1)
  real, past = np.arange(5) < np.array([[5], [3]]), np.arange(4) >= np.array([[1], [4]])
  slates = PackedSlates(random.normal(size=(2, 5, 3)), real, past, random.normal(size=(2, 5, content)), random.normal(size=(2, 4, content)))
  edges = np.tile(np.float32([-2, 0, 2]), (3, 1))
  models = [SlateScorer(dataclasses.replace(preset("test", 1), num_layers=n), (3, 2), content_dim=content) for n in (4, 2)]
  params = jax.tree.map(lambda x: 5 * x, jax.device_get(init_params(models[0], jax.random.key(0))))
  params["decoder"] = silence(params["decoder"], [0, 2])
  changes, count = jax.jit(scored_block_influence, static_argnums=0)(models[0], params, slates, edges)
  assert count == real.sum() + (past.sum() if content else 0)
  np.testing.assert_allclose(np.asarray(changes)[[0, 2]], 0.0, atol=1e-5)
  kept = choose_layers(changes, 2)
  assert kept == [1, 3]
  pruned = {**params, "decoder": prune_params(params["decoder"], kept)}
  score = jax.jit(lambda model, params: model.apply({"params": params}, slates, edges), static_argnums=0)
  whole, left = (np.asarray(score(model, of)) for model, of in zip(models, (params, pruned), strict=True))
  assert whole[real].std() > 1e-3
  np.testing.assert_allclose(whole[real], left[real], atol=1e-5)


def test_equal_layers_go_from_the_top_and_wrong_numbers_are_refused():
  assert choose_layers(np.array([0.1, 0.3, 0.1, 0.2]), 3) == [0, 1, 3]
  for number in (0, 5):
    with pytest.raises(ValueError, match="of 4 cannot be kept"):
      choose_layers(np.zeros(4), number)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_cut_with_its_windows(family):
  """Of seven layers three do nothing and go; Gemma's sixth, which has no window, stays and is then the third."""
  decoder, kept = Decoder(CONFIGS[family]), [0, 2, 5, 6]
  params = silence(jax.tree.map(jnp.asarray, draw_params(CONFIGS[family])), [1, 3, 4])
  mask = np.ones(TOKENS.shape, bool)
  changes, _ = jax.jit(block_influence, static_argnums=0)(decoder, params, jnp.asarray(TOKENS), jnp.asarray(mask))
  assert choose_layers(changes, 4) == kept
  pruned = prune_decoder(decoder, kept)
  assert pruned.config.local is None or pruned.config.local.layers == (True, True, False, True)
  left = hidden_states(pruned, prune_params(params, kept), TOKENS, mask)
  np.testing.assert_allclose(hidden_states(decoder, params, TOKENS, mask), left, atol=1e-5)
