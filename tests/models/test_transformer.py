"""The decoder against a plain NumPy one, and the identities that rollout and update rest on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr2_jax.models import attention, transformer
from gr2_jax.models.cache import Prefix, empty_cache
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params

V = 50


@pytest.fixture(scope="module")
def model():
  decoder = Decoder(preset("test", V))
  params = init_params(decoder, jax.random.key(0))
  # Norm scales of one would hide a missing or doubled scale.
  random = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), jax.device_get(params))
  return decoder, params


def row(tokens):
  tokens = np.atleast_2d(np.asarray(tokens, np.int32))
  return tokens, np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape), np.ones_like(tokens)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "mutable"))
def apply(decoder, params, *args, **kwargs):
  return decoder.apply({"params": params}, *args, **kwargs)


def forward(model, *args, **kwargs):
  return apply(*model, *args, **kwargs)


def numpy_decoder(config, params, tokens):
  """Qwen3's forward pass for one unpadded row, written with loops over heads and no shared code."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  layers = p["layers"]

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

  def rope(x):
    length, dim = x.shape
    out = np.empty_like(x)
    for t in range(length):
      for i in range(dim // 2):
        a = t / config.rope_base ** (2 * i / dim)
        c, s = np.cos(a), np.sin(a)
        out[t, i] = x[t, i] * c - x[t, i + dim // 2] * s
        out[t, i + dim // 2] = x[t, i + dim // 2] * c + x[t, i] * s
    return out

  x = p["embedding"][tokens]
  length = len(tokens)
  for n in range(config.num_layers):
    get = lambda name, n=n: layers[name]["kernel"][n]
    scale = lambda name, n=n: layers[name]["scale"][n]
    y = norm(x, scale("attention_norm"))
    heads = []
    for h in range(config.num_heads):
      g = h // (config.num_heads // config.num_kv_heads)
      q = rope(norm(y @ get("q")[:, h], scale("q_norm")))
      k = rope(norm(y @ get("k")[:, g], scale("k_norm")))
      v = y @ get("v")[:, g]
      s = q @ k.T / np.sqrt(config.head_dim)
      s[np.triu_indices(length, 1)] = -np.inf
      w = np.exp(s - s.max(-1, keepdims=True))
      heads.append(w / w.sum(-1, keepdims=True) @ v)
    x = x + sum(o @ get("out")[h] for h, o in enumerate(heads))
    y = norm(x, scale("mlp_norm"))
    gate = y @ get("gate")
    x = x + (gate / (1 + np.exp(-gate)) * (y @ get("up"))) @ get("down")
  return norm(x, p["final_norm"]["scale"]) @ p["embedding"].T


def test_logits_of_some_tokens_are_those_of_all(model):
  hidden, _ = forward(model, *row([3, 1, 4]))
  some = np.array([7, 0, 49])
  np.testing.assert_allclose(
    forward(model, hidden, some, method="logits"), forward(model, hidden, method="logits")[..., some], rtol=1e-5, atol=1e-5
  )


def test_agrees_with_a_plain_numpy_decoder(model):
  tokens = np.random.default_rng(0).integers(0, V, 9)
  hidden, _ = forward(model, *row(tokens))
  logits = forward(model, hidden, method="logits")[0]
  np.testing.assert_allclose(logits, numpy_decoder(model[0].config, model[1], tokens), atol=2e-4)


@pytest.mark.parametrize(
  ("name", "parameters"),
  # Published parameter counts at vocabulary 151,936.
  [("qwen3_0_6b", 596_049_920), ("qwen3_1_7b", 1_720_574_976), ("qwen3_8b", 8_190_735_360), ("qwen3_32b", 32_762_123_264)],
)
def test_published_sizes(name, parameters):
  decoder = Decoder(preset(name, 151_936))
  abstract = jax.eval_shape(lambda: init_params.__wrapped__(decoder, jax.random.key(0)))
  assert sum(np.prod(x.shape, dtype=np.int64) for x in jax.tree.leaves(abstract)) == parameters


def test_unknown_preset_lists_the_names():
  with pytest.raises(ValueError, match="qwen3_0_6b"):
    preset("qwen4", 10)


def test_packed_equals_unpacked_and_padding_changes_nothing(model):
  a, b = [3, 1, 4, 1, 5], [9, 2, 6]
  tokens = np.array([a + b + [0, 0]])
  positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])
  segments = np.array([[1] * 5 + [2] * 3 + [0] * 2])
  packed = np.asarray(forward(model, tokens, positions, segments)[0])
  np.testing.assert_allclose(packed[0, :5], forward(model, *row(a))[0][0], atol=1e-5)
  np.testing.assert_allclose(packed[0, 5:8], forward(model, *row(b))[0][0], atol=1e-5)
  other = np.asarray(forward(model, np.where(segments > 0, tokens, 7), positions, segments)[0])
  np.testing.assert_array_equal(packed[0, :8], other[0, :8])
  assert np.isfinite(packed).all()


def test_cached_decoding_equals_the_full_forward(model):
  tokens, positions, segments = row(np.random.default_rng(1).integers(0, V, (3, 7)))
  full, _ = forward(model, tokens, positions, segments)
  cache = empty_cache(model[0].config, 3, 9)
  out = []
  for start, stop in ((0, 3), (3, 4), (4, 7)):  # a chunk, one token, a chunk
    part, cache = forward(model, tokens[:, start:stop], positions[:, start:stop], segments[:, start:stop], cache=cache)
    out.append(part)
  np.testing.assert_allclose(np.concatenate(out, 1), full, atol=1e-5)
  assert int(cache.length) == 7


def split_forward(model, prompts, lengths, suffixes):
  """Hidden states of suffixes `[P, G, Lc]` behind shared prompts `[P, Lp]` of the given lengths."""
  num_prompts, group, size = suffixes.shape
  mask = np.arange(prompts.shape[1]) < lengths[:, None]
  places = np.broadcast_to(np.arange(prompts.shape[1]), prompts.shape)
  _, (k, v) = forward(model, prompts, places, mask.astype(np.int32))
  tokens = suffixes.reshape(-1, size)
  positions = np.repeat(lengths, group)[:, None] + np.arange(size)
  prefix = Prefix(k=k, v=v, mask=mask, positions=places)
  return tokens, positions, prefix


@pytest.mark.parametrize("cached", [False, True])
def test_shared_prefix_equals_the_whole_sequence(model, cached):
  rng = np.random.default_rng(2)
  prompts, lengths = rng.integers(0, V, (2, 6)), np.array([6, 4])
  suffixes = rng.integers(0, V, (2, 3, 5))
  tokens, positions, prefix = split_forward(model, prompts, lengths, suffixes)
  if cached:
    cache, parts = empty_cache(model[0].config, 6, 5), []
    for t in range(5):
      one = slice(t, t + 1)
      part, cache = forward(model, tokens[:, one], positions[:, one], np.ones((6, 1), np.int32), prefix=prefix, cache=cache)
      parts.append(part)
    hidden = np.concatenate(parts, 1)
  else:
    hidden = np.asarray(forward(model, tokens, positions, np.ones_like(tokens), prefix=prefix)[0])
  for p in range(2):
    for g in range(3):
      whole = np.concatenate([prompts[p, : lengths[p]], suffixes[p, g]])
      expected = np.asarray(forward(model, *row(whole))[0])[0, lengths[p] :]
      np.testing.assert_allclose(hidden[p * 3 + g], expected, atol=1e-5)


def test_remat_and_untied_output_run(model):
  config = dataclasses.replace(preset("test", V), remat=True, tie_embedding=False)
  decoder = Decoder(config)
  params = init_params(decoder, jax.random.key(0))
  assert params["output"].shape == (V, config.width)

  def loss(params):
    hidden, _ = decoder.apply({"params": params}, *row([1, 2, 3]))
    return jnp.sum(jnp.square(decoder.apply({"params": params}, hidden, method="logits")))

  grads = jax.jit(jax.grad(loss))(params)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def _attend_plainly(q, sources):
  """One softmax over the keys of all sources, each laid out for every row of `q`."""
  k, v = (jnp.concatenate([jnp.repeat(s[i], len(q) // len(s[i]), axis=0) for s in sources], axis=1) for i in (0, 1))
  masks = [jnp.broadcast_to(mask, (len(k), q.shape[1], k.shape[1])) for k, _, mask in sources]
  mask = jnp.concatenate([jnp.repeat(m, len(q) // len(m), axis=0) for m in masks], axis=-1)
  scores = jnp.einsum("btkrd,blkd->bkrtl", q, k) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum("bkrtl,blkd->btkrd", weights, v)


def test_attention_and_its_gradients_equal_one_plain_softmax():
  random = np.random.default_rng(0)

  def draw(*shape):
    return np.float32(2 * random.normal(size=shape))

  q, prompt, own = draw(6, 5, 2, 3, 4), (draw(2, 7, 2, 4), draw(2, 7, 2, 4)), (draw(6, 5, 2, 4), draw(6, 5, 2, 4))
  prompt_mask = np.arange(7) < np.array([7, 3])[:, None, None]
  causal = np.tril(np.ones((1, 5, 5), bool))
  weights = draw(*q.shape)

  def run(attention):
    def value(q, prompt, own):
      return jnp.sum(weights * attention(q, [(*prompt, prompt_mask), (*own, jnp.broadcast_to(causal, (6, 5, 5)))]))

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(q, prompt, own)

  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), run(attention.attend), run(_attend_plainly))


def test_attention_is_looked_up_by_its_name(model, monkeypatch):
  decoder, params = model
  tokens = row([1, 2, 3])

  def hidden(attention):
    return apply(Decoder(dataclasses.replace(decoder.config, attention=attention)), params, *tokens)[0]

  with pytest.raises(ValueError, match=r"attention: .*matrices"):
    hidden("rows")
  monkeypatch.setitem(attention.ATTENTION, "plain", _attend_plainly)
  np.testing.assert_allclose(hidden("plain"), hidden("matrices"), atol=1e-5)


def test_intermediates_are_every_layers_outputs_and_never_parameters(model):
  decoder, params = model
  assert set(jax.eval_shape(lambda: decoder.init(jax.random.key(0), *row([1])))) == {"params"}
  (hidden, _), seen = forward(model, *row([1, 2, 3]), mutable=("intermediates",))
  (outputs,) = seen["intermediates"]["layers"]["output"]
  assert outputs.shape == (decoder.config.num_layers, 1, 3, decoder.config.width)
  last = np.asarray(outputs)[-1]
  last = last / np.sqrt(np.mean(last**2, axis=-1, keepdims=True) + decoder.config.norm_eps)
  np.testing.assert_allclose(hidden, last * params["final_norm"]["scale"], atol=1e-5)
  np.testing.assert_allclose(hidden, forward(model, *row([1, 2, 3]))[0], rtol=1e-6)


def test_blocks_of_queries_change_nothing(model, monkeypatch):
  decoder, params = model
  tokens = np.random.default_rng(0).integers(0, decoder.config.vocab_size, (2, 11))
  segments = np.array([[1] * 6 + [2] * 5, [1] * 8 + [0] * 3])
  positions = np.broadcast_to(np.arange(11), tokens.shape)

  def run(params):
    hidden, _ = decoder.apply({"params": params}, tokens, positions, segments)
    return jnp.sum(jnp.sin(hidden) * (segments > 0)[..., None])

  expected = jax.jit(jax.value_and_grad(run))(params)
  monkeypatch.setattr(transformer, "_QUERY_BLOCK", 4)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), jax.jit(jax.value_and_grad(run))(params), expected)


# Two axes in and one out, as after attention, and one in and two out, as its queries.
@pytest.mark.parametrize("rows, inputs, outputs", [((2, 3), (4, 5), (6,)), ((2, 3), (4,), (5, 6))])
def test_a_kernels_gradient_in_the_other_order_is_the_same(rows, inputs, outputs):
  random = np.random.default_rng(0)
  x, kernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (rows + inputs, inputs + outputs))
  numbers = ((tuple(range(2, 2 + len(inputs))), tuple(range(len(inputs)))), ((), ()))

  def gradients(product):
    return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel, numbers))), argnums=(0, 1)))(x, kernel)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradients(transformer._product),
    gradients(jax.lax.dot_general),
  )
