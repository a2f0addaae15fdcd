"""The decoder: Qwen3's arithmetic in Linen, layers scanned, attention over a shared prompt, a cache and itself.

RMSNorm, grouped-query attention with QK-norm, rotary positions on halves, SwiGLU (Qwen3, arXiv 2505.09388).
Only this folder knows modules; everything else calls `decoder.apply` on a parameter pytree.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.cache import Cache, Prefix
from gr2_jax.models.config import ModelConfig
from gr2_jax.training.mesh import constrain

_MASKED = -1e30  # finite, so that a row with nothing to see stays free of NaN


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
  """Rotary position embedding on halves. `x [B, T, H, Dh]`, `positions [B, T]`."""
  half = x.shape[-1] // 2
  inverse_frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None].astype(jnp.float32) * inverse_frequency
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(q: jax.Array, sources: list[tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
  """One softmax over several sources of keys and values, each attended on its own and merged by log-sum-exp.

  `q [B, T, KV, R, Dh]` (R query heads for each key head). A source is `k, v [S, L, KV, Dh]` with a mask that broadcasts to
  `[S, T, L]`: S may divide B, and then each B/S successive rows of `q` share one row of the source, which is read once.
  """
  batch, length, kv_heads, ratio, head_dim = q.shape
  q = q * head_dim**-0.5
  parts = []
  for k, v, mask in sources:
    rows, keys = k.shape[:2]
    group = batch // rows
    # Everything that shares a key is folded into one matrix, heads of a group too: one plain batched product on every backend.
    folded = q.reshape(rows, group, length, kv_heads, ratio, head_dim).transpose(0, 3, 1, 4, 2, 5)
    folded = folded.reshape(rows * kv_heads, -1, head_dim)
    k, v = (x.transpose(0, 2, 1, 3).reshape(rows * kv_heads, keys, head_dim) for x in (k, v))
    scores = jnp.einsum("ntd,nld->ntl", folded, k, preferred_element_type=jnp.float32)
    shape = (rows, kv_heads, group, ratio, length, keys)
    scores = jnp.where(mask[:, None, None, None], scores.reshape(shape), _MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    out = jnp.einsum("ntl,nld->ntd", weights.astype(v.dtype).reshape(rows * kv_heads, -1, keys), v, preferred_element_type=jnp.float32)
    parts.append((out.reshape(*shape[:-1], head_dim), weights.sum(axis=-1, keepdims=True), top))

  def unfold(x):  # [S, KV, G, R, T, .] -> [B, T, KV, R, .]
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, length, kv_heads, ratio, -1)

  parts = [tuple(map(unfold, part)) for part in parts]
  top = functools.reduce(jnp.maximum, [part_top for _, _, part_top in parts])
  scales = [jnp.exp(part_top - top) for _, _, part_top in parts]
  total = sum(scale * mass for scale, (_, mass, _) in zip(scales, parts, strict=True))
  out = sum(scale * part_out for scale, (part_out, _, _) in zip(scales, parts, strict=True))
  return (out / total).astype(q.dtype)


def _dense(features, axes, name, config, axis=-1):
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=False,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), axes),
    name=name,
  )


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, the mean square in float32."""

  config: ModelConfig
  axis_name: str = "embed"

  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis_name,))
    scale = self.param("scale", init, (x.shape[-1],), self.config.param_dtype)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps)
    return (scale * wide).astype(x.dtype)


class Block(nn.Module):
  """One layer; `prefix` and `cache` are this layer's slices, masks are shared by all layers."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x, layer, shared):
    c = self.config
    prefix_kv, cache_kv = layer
    positions, own_mask, prefix_mask, cache_length = shared

    y = RMSNorm(c, name="attention_norm")(x)
    q = _dense((c.num_heads, c.head_dim), ("embed", "heads", "head_dim"), "q", c)(y)
    k = _dense((c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "k", c)(y)
    v = _dense((c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "v", c)(y)
    q = rotate(RMSNorm(c, "head_dim", name="q_norm")(q), positions, c.rope_base)
    k = rotate(RMSNorm(c, "head_dim", name="k_norm")(k), positions, c.rope_base)
    if cache_kv is not None:
      k = jax.lax.dynamic_update_slice_in_dim(cache_kv[0], k, cache_length, axis=1)
      v = jax.lax.dynamic_update_slice_in_dim(cache_kv[1], v, cache_length, axis=1)
    sources = [(k, v, own_mask)]
    if prefix_kv is not None:
      sources.insert(0, (*prefix_kv, prefix_mask[:, None, :]))
    grouped = q.reshape(*q.shape[:2], c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
    out = attend(grouped, sources).reshape(q.shape)
    x = x + _dense(c.width, ("heads", "head_dim", "embed"), "out", c, axis=(-2, -1))(out)

    y = RMSNorm(c, name="mlp_norm")(x)
    gate = _dense(c.mlp_width, ("embed", "mlp"), "gate", c)(y)
    up = _dense(c.mlp_width, ("embed", "mlp"), "up", c)(y)
    x = x + _dense(c.width, ("mlp", "embed"), "down", c)(nn.silu(gate) * up)
    return constrain(x, "batch", "seq", None), (k, v)


class Decoder(nn.Module):
  """Causal language model over text and semantic-ID tokens.

  Parameters may hold, besides those of the model, `memory [S, D]`: embeddings of what has no token, such as the soft slots of items.
  """

  config: ModelConfig

  def setup(self):
    c = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    self.embedding = self.param("embedding", init, (c.vocab_size, c.width), c.param_dtype)
    self.output = self.embedding if c.tie_embedding else self.param("output", init, (c.vocab_size, c.width), c.param_dtype)
    self.memory = self.get_variable("params", "memory") if self.has_variable("params", "memory") else None
    block = nn.remat(Block, prevent_cse=False) if c.remat else Block
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast),
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(c)
    self.final_norm = RMSNorm(c)

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    prefix: Prefix | None = None,
    cache: Cache | None = None,
  ):
    """Hidden states `[B, T, D]`, and what the tokens leave behind.

    `tokens`, `positions`, `segment_ids [B, T]`; a token sees earlier tokens of its own segment, 0 is padding and is seen by none.
    Without a cache the second result is `(k, v)`, each `[layers, B, T, KV, Dh]`; with one it is the cache with T more tokens,
    all of one segment. With a prefix every row also sees its prompt (see `Prefix`).
    Where the parameters hold a `memory` the id -1 - s stands for its row s.
    """
    length = tokens.shape[1]
    if cache is None:
      step = jnp.arange(length)
      own = (step[:, None] >= step) & (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
      cache_kv, written, mask = None, None, None
    else:
      written = cache.length
      mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, segment_ids > 0, written, axis=1)
      step = written + jnp.arange(length)
      own = mask[:, None, :] & (jnp.arange(cache.mask.shape[1]) <= step[:, None])
      cache_kv = (cache.k, cache.v)
    prefix_kv = None if prefix is None else (prefix.k, prefix.v)
    prefix_mask = None if prefix is None else prefix.mask

    x = constrain(self._embed(tokens).astype(self.config.dtype), "batch", "seq", None)
    x, (k, v) = self.layers(x, (prefix_kv, cache_kv), (positions, own, prefix_mask, written))
    hidden = self.final_norm(x)
    if cache is None:
      return hidden, (k, v)
    return hidden, Cache(k=k, v=v, mask=mask, length=written + length)

  def _embed(self, tokens):
    if self.memory is None:
      return jnp.take(self.embedding, tokens, axis=0)
    x = jnp.take(self.embedding, jnp.maximum(tokens, 0), axis=0)
    return jnp.where((tokens < 0)[..., None], jnp.take(self.memory, jnp.maximum(-1 - tokens, 0), axis=0).astype(x.dtype), x)

  def logits(self, hidden: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
    """Float32 logits `[..., V]` of hidden states `[..., D]`, or `[..., C]`, of tokens `[C]` alone."""
    table = (self.output if tokens is None else self.output[tokens]).astype(self.config.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def init_boxed(decoder: Decoder, key: jax.Array):
  """Fresh parameters that still carry their logical axes (for `training.mesh.init_sharded`)."""
  token = jnp.zeros((1, 1), jnp.int32)
  return decoder.init(key, token, token, token + 1)["params"]


@functools.partial(jax.jit, static_argnums=0)
def init_params(decoder: Decoder, key: jax.Array):
  """Fresh parameters as a plain pytree."""
  return nn.unbox(init_boxed(decoder, key))
