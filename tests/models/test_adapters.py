"""Adapters change nothing at first, what they change a merge changes alike, and they alone are trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_families import CONFIGS, TOKENS, draw_params

from gr2_jax.models.adapters import TARGETS, Lora, LoraOptions, abstract_adapters, frozen_part, init_adapters, merge
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import Decoder, abstract_boxed, init_params
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.training.mesh import make_mesh, state_shardings

LORA = Lora(rank=3, alpha=6.0, targets=TARGETS, rows=10)
PLACES = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(model, lora, base):
  return nn.unbox(init_adapters(model, lora, base, jax.random.key(0)))


def draw_adapters(model, lora, base):
  """Adapters after some training: no factor is 0, and rows are not the base's."""
  random = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype(np.float32), start(model, lora, base))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
  """(decoder, base, trained adapters) of a family."""
  decoder, base = Decoder(CONFIGS[request.param]), draw_params(CONFIGS[request.param])
  return decoder, base, draw_adapters(decoder, LORA, base)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(decoder, params, tokens=TOKENS):
  hidden, _ = decoder.apply({"params": params}, tokens, PLACES, jnp.ones(tokens.shape, jnp.int32))
  return decoder.apply({"params": params}, hidden, method="logits"), hidden


merged_of = jax.jit(merge, static_argnums=0)


def test_new_adapters_change_nothing(case):
  decoder, base, _ = case
  fresh = start(decoder, LORA, base)
  assert all(jnp.std(of["lora_a"]) > 0 for of in fresh["layers"].values())
  for found, expected in zip(logits_of(decoder, LORA.join(base, fresh)), logits_of(decoder, base), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)  # rounding of another order of sums, in the last rows' logits
  jax.tree.map(np.testing.assert_array_equal, merged_of(LORA, base, fresh), base)


def test_what_is_joined_does_what_is_merged(case):
  decoder, base, adapters = case
  joined, merged = LORA.join(base, adapters), merged_of(LORA, base, adapters)
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, base)
  assert joined["layers"]["q"]["kernel"] is base["layers"]["q"]["kernel"], "the base is not copied"
  (ours, hidden), (theirs, _), (before, _) = (logits_of(decoder, params) for params in (joined, merged, base))
  np.testing.assert_allclose(ours, theirs, atol=2e-4)
  assert np.abs(ours - before).max() > 0.1
  # Of some tokens alone, text and others.
  some = jnp.array([3, 95, 90, 86, 85])
  np.testing.assert_allclose(decoder.apply({"params": joined}, hidden, some, method="logits"), ours[..., some], atol=2e-5)


def test_an_answer_through_prefix_and_cache_is_that_of_the_merged_model(case):
  decoder, base, adapters = case
  generate = make_generate(RolloutConfig(decoder, group=2, max_new_tokens=12, eos_id=-1, pad_id=0))
  prompts, mask = jnp.asarray(TOKENS), jnp.arange(24) < jnp.array([[24], [15]])
  found = [
    generate(params, prompts, mask, jax.random.key(0), Sampling.create(temperature=1.0))
    for params in (LORA.join(base, adapters), merged_of(LORA, base, adapters))
  ]
  np.testing.assert_array_equal(found[0].completions, found[1].completions)
  np.testing.assert_allclose(found[0].behaviour_logps, found[1].behaviour_logps, atol=1e-3)


def test_factors_of_some_targets_alone():
  decoder, base = Decoder(CONFIGS["qwen3"]), draw_params(CONFIGS["qwen3"])
  lora = Lora(2, 1.0, ("v", "out"))
  adapters = draw_adapters(decoder, lora, base)
  assert {*adapters} == {"layers"} and {*adapters["layers"]} == {"v", "out"}
  np.testing.assert_allclose(
    *(logits_of(decoder, of(base, adapters))[0] for of in (lora.join, functools.partial(merged_of, lora))), atol=2e-4
  )


def test_merging_is_the_plain_product():
  """Of attention's output and of queries, with loops over nothing but layers."""
  base = draw_params(CONFIGS["llama"])
  adapters = draw_adapters(Decoder(CONFIGS["llama"]), LORA, base)
  merged = merged_of(LORA, base, adapters)
  for layer in range(7):
    q, out = ({name: np.asarray(of[layer], np.float64) for name, of in adapters["layers"][target].items()} for target in ("q", "out"))
    expected = base["layers"]["q"]["kernel"][layer] + 2.0 * np.tensordot(q["lora_a"], q["lora_b"], 1)
    np.testing.assert_allclose(merged["layers"]["q"]["kernel"][layer], expected, atol=1e-6)
    expected = base["layers"]["out"]["kernel"][layer] + 2.0 * np.tensordot(out["lora_a"], out["lora_b"], 1)
    np.testing.assert_allclose(merged["layers"]["out"]["kernel"][layer], expected, atol=1e-6)
  np.testing.assert_array_equal(merged["output"][:86], base["output"][:86])
  np.testing.assert_array_equal(merged["output"][86:], adapters["output_rows"])


def test_gradients_reach_adapters_and_new_rows_alone():
  decoder, base = Decoder(CONFIGS["llama"]), draw_params(CONFIGS["llama"])
  adapters = draw_adapters(decoder, LORA, base)

  @jax.jit
  def loss(adapters, base, tokens):
    logits, _ = logits_of(decoder, LORA.join(base, adapters), tokens)
    return jax.nn.logsumexp(logits, axis=-1).mean()

  gradient = jax.grad(loss)(adapters, base, TOKENS)
  assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
  # The rows of the base that the trained ones replace are not read, whatever they hold.
  spoilt = base | {name: np.where(np.arange(96)[:, None] < 86, base[name], np.float32(99)) for name in ("embedding", "output")}
  assert loss(adapters, spoilt, TOKENS) == loss(adapters, base, TOKENS)
  # Of inputs without a new token the input's rows get nothing.
  text = jax.grad(loss)(adapters, base, TOKENS % 86)
  assert not jnp.abs(text["embedding_rows"]).max() and jnp.abs(text["output_rows"]).max() > 0


def test_a_scorer_trains_what_is_no_decoder_whole():
  model = SlateScorer(CONFIGS["qwen3"], shape=(3, 4), prior=1)
  base = init_params(model, jax.random.key(0))
  slates = PackedSlates(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool), jnp.ones((2, 1), bool), jnp.zeros((2, 4, 0)), jnp.zeros((2, 1, 0)))
  edges = jnp.broadcast_to(jnp.linspace(0, 2, 5), (3, 5))
  frozen = frozen_part(base)
  assert {*frozen} == {"decoder"}
  fresh = start(model, LORA, base)
  assert {*fresh} == {"decoder", "facts", "marker", "head", "prior"}
  jax.tree.map(np.testing.assert_array_equal, LORA.join(frozen, fresh)["head"], base["head"])
  score = jax.jit(lambda params: model.apply({"params": params}, slates, edges))
  np.testing.assert_allclose(score(LORA.join(frozen, fresh)), score(base), atol=1e-6)
  trained = draw_adapters(model, LORA, base)
  np.testing.assert_allclose(score(LORA.join(frozen, trained)), score(merged_of(LORA, frozen, trained)), atol=1e-4)


def test_factors_lie_on_the_mesh_as_their_kernels_do():
  decoder, mesh = Decoder(CONFIGS["llama"]), make_mesh(2, 2, 2)
  base = jax.device_put(draw_params(CONFIGS["llama"]), state_shardings(abstract_boxed(decoder), mesh))
  shardings = state_shardings(abstract_adapters(decoder, LORA), mesh)
  spec = {name: tuple(of.spec) for name, of in shardings["layers"]["out"].items()}
  assert spec == {"lora_a": (None, "tensor", None, None), "lora_b": (None, None, "fsdp")}
  assert tuple(shardings["layers"]["q"]["lora_a"].spec) == (None, "fsdp", None)
  assert tuple(shardings["embedding_rows"].spec) == (None, "fsdp")
  adapters = jax.device_put(draw_adapters(decoder, LORA, draw_params(CONFIGS["llama"])), shardings)
  with jax.set_mesh(mesh):
    found, _ = logits_of(decoder, LORA.join(base, adapters))
    merged, _ = logits_of(decoder, merged_of(LORA, base, adapters))
  expected, _ = logits_of(decoder, jax.device_get(LORA.join(base, adapters)))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(merged, expected, atol=2e-4)


@pytest.mark.parametrize("targets", [(), ("q", "q"), ("q", "experts")])
def test_targets_are_matrices_of_a_layer_each_once(targets):
  with pytest.raises(ValueError, match="targets: "):
    LoraOptions(rank=4, targets=targets)
