"""The decoder: Qwen3's arithmetic in Linen, layers scanned, attention over a shared prompt, a cache and itself.

RMSNorm, grouped-query attention with QK-norm, rotary positions on halves, SwiGLU (Qwen3, arXiv 2505.09388).
Only this folder knows modules; everything else calls `decoder.apply` on a parameter pytree.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.cache import Cache, Prefix
from gr2_jax.models.config import ModelConfig
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.training.mesh import constrain

_QUERY_BLOCK = 256


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
  """Rotary position embedding on halves. `x [B, T, H, Dh]`, `positions [B, T]`."""
  half = x.shape[-1] // 2
  inverse_frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None].astype(jnp.float32) * inverse_frequency
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


# Keys, values `[S, L, KV, Dh]` and a mask that broadcasts to `[S, T, L]`.
Source = tuple[jax.Array, jax.Array, jax.Array]
# For the backward pass: queries, sources, the result, and each source's log-sum-exp, folded.
_Kept = tuple[jax.Array, list[Source], jax.Array, list[jax.Array]]


def attend(q: jax.Array, sources: list[Source], implementation: str = "matrices") -> jax.Array:
  """One softmax over several sources of keys and values.

  `q [B, T, KV, R, Dh]` (R query heads for each key head). A source is `k, v [S, L, KV, Dh]` with a mask that broadcasts to
  `[S, T, L]`: S may divide B, and then each B/S successive rows of `q` share one row of the source.
  `implementation`: a name in ATTENTION; raises ValueError for another.
  """
  if implementation not in ATTENTION:
    raise ValueError(f"attention: {implementation!r} is none of {', '.join(ATTENTION)}")
  return ATTENTION[implementation](q, sources)


@jax.custom_vjp
def _attend_in_matrices(q: jax.Array, sources: list[Source]) -> jax.Array:
  """Each source is attended on its own, read once for all rows that share it, and the parts are merged by log-sum-exp.

  The backward pass computes the weights again from each query's log-sum-exp, so that nothing of size T x L outlives a layer
  (FlashAttention, arXiv 2205.14135, in whole matrices).
  """
  return _attend_forward(q, sources)[0]


def _attend_forward(q: jax.Array, sources: list[Source]) -> tuple[jax.Array, _Kept]:
  parts = []
  for k, v, mask in sources:
    scores = _scores(q, k, mask)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    out = jnp.einsum("nml,nld->nmd", weights.astype(v.dtype), _by_head(v), preferred_element_type=jnp.float32)
    parts.append(tuple(_unfold(x, q.shape) for x in (out, weights.sum(axis=-1, keepdims=True), top)))
  top = functools.reduce(jnp.maximum, [part_top for _, _, part_top in parts])
  scales = [jnp.exp(part_top - top) for _, _, part_top in parts]
  total = jnp.asarray(sum(scale * mass for scale, (_, mass, _) in zip(scales, parts, strict=True)))
  merged = sum(scale * part_out for scale, (part_out, _, _) in zip(scales, parts, strict=True))
  out = (merged / total).astype(q.dtype)
  log_total = top + jnp.log(total)
  # Folded here: a transpose inside the backward pass's exp would be done for every key.
  return out, (q, sources, out, [_fold(log_total, len(k)) for k, _, _ in sources])


def _attend_backward(kept: _Kept, d_out: jax.Array) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array, None]]]:
  q, sources, out, log_totals = kept
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  delta = jnp.sum(d_out.astype(jnp.float32) * out, axis=-1, keepdims=True)
  d_q, d_sources = jnp.float32(0), []
  for (k, v, mask), log_total in zip(sources, log_totals, strict=True):
    rows = len(k)
    # The barrier takes it out of the layers' stack once, and not inside exp for every key.
    weights = jnp.exp(_scores(q, k, mask) - jax.lax.optimization_barrier(log_total))
    folded = _fold(d_out, rows)
    d_weights = product("nmd,nld->nml", folded, _by_head(v))
    d_scores = (weights * (d_weights - _fold(delta, rows))).astype(k.dtype)
    d_v = product("nml,nmd->nld", weights.astype(v.dtype), folded)
    d_k = product("nml,nmd->nld", d_scores, _fold(q, rows)) * q.shape[-1] ** -0.5
    d_q += _unfold(product("nml,nld->nmd", d_scores, _by_head(k)) * q.shape[-1] ** -0.5, q.shape)
    d_sources.append((_by_token(d_k, k), _by_token(d_v, v), None))
  return d_q.astype(q.dtype), d_sources


_attend_in_matrices.defvjp(_attend_forward, _attend_backward)

# Every implementation of `attend`, with gradients.
ATTENTION: Mapping[str, Callable[[jax.Array, list[Source]], jax.Array]] = {"matrices": _attend_in_matrices}


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
  """Masked scores `[S * KV, G * R * T, L]` of one source."""
  # Tied to the layer's queries and added: XLA would lay out a mask, or a constant to select, for every head ahead of the loop over layers.
  q, mask = jax.lax.optimization_barrier((q, mask))
  rows, keys = k.shape[:2]
  scores = jnp.einsum("nmd,nld->nml", _fold(q * q.shape[-1] ** -0.5, rows), _by_head(k), preferred_element_type=jnp.float32)
  shape = (rows, scores.shape[0] // rows, -1, q.shape[1], keys)
  return (scores.reshape(shape) + jnp.where(mask, 0.0, OUT_OF_REACH)[:, None, None]).reshape(scores.shape)


def _fold(x: jax.Array, rows: int) -> jax.Array:
  """`[B, T, KV, R, .]` -> `[S * KV, G * R * T, .]`: all that shares a key is one matrix, one plain batched product on every backend."""
  batch, length, kv_heads, ratio, width = x.shape
  x = x.reshape(rows, batch // rows, length, kv_heads, ratio, width).transpose(0, 3, 1, 4, 2, 5)
  return x.reshape(rows * kv_heads, -1, width)


def _unfold(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The inverse of `_fold`, to `[B, T, KV, R, .]`."""
  batch, length, kv_heads, ratio, _ = shape
  rows = len(x) // kv_heads
  x = x.reshape(rows, kv_heads, batch // rows, ratio, length, -1).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(batch, length, kv_heads, ratio, -1)


def _by_head(x: jax.Array) -> jax.Array:
  """`[S, L, KV, Dh]` -> `[S * KV, L, Dh]`."""
  rows, keys, kv_heads, head_dim = x.shape
  return x.transpose(0, 2, 1, 3).reshape(rows * kv_heads, keys, head_dim)


def _by_token(x: jax.Array, like: jax.Array) -> jax.Array:
  """The inverse of `_by_head`."""
  rows, keys, kv_heads, head_dim = like.shape
  return x.reshape(rows, kv_heads, keys, head_dim).transpose(0, 2, 1, 3).astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
  """`lax.dot_general` of a dense layer, whose kernel's gradient is x^T d_out, in this order.

  JAX's own is d_out^T x, transposed: a CPU then turns d_out, and recomputes what it came from (SwiGLU's derivative) column by column.
  """
  return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision)


def _product_forward(
  x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _product(x, kernel, dimension_numbers, precision), (x, kernel)


def _product_backward(
  dimension_numbers: Any, precision: Any, kept: tuple[jax.Array, jax.Array], d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  inputs = len(dimension_numbers[0][0])
  rows, outputs = [*range(x.ndim - inputs)], [*range(inputs, kernel.ndim)]
  d_x = jnp.tensordot(d_out, kernel, ([*range(len(rows), d_out.ndim)], outputs), precision=precision)
  return d_x, jnp.tensordot(x, d_out, (rows, rows), precision=precision)


_product.defvjp(_product_forward, _product_backward)


def _dense(
  features: int | tuple[int, ...], axes: tuple[str, ...], name: str, config: ModelConfig, axis: int | tuple[int, ...] = -1
) -> nn.DenseGeneral:
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=False,
    dtype=config.dtype,
    param_dtype=config.param_dtype,
    kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), axes),
    dot_general=_product,
    name=name,
  )


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, the mean square in float32."""

  config: ModelConfig
  axis_name: str = "embed"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis_name,))
    scale = self.param("scale", init, (x.shape[-1],), self.config.param_dtype)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps)
    return (scale * wide).astype(x.dtype)


class Block(nn.Module):
  """One layer; `prefix` and `cache` are this layer's slices, masks are shared by all layers.

  Whoever asks for the collection `intermediates` finds the layer's `output [B, T, D]` there.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, layer: tuple[Any, Any], shared: tuple[Any, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
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
    prompt = [] if prefix_kv is None else [(*prefix_kv, prefix_mask[:, None, :])]
    grouped = q.reshape(*q.shape[:2], c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
    if cache_kv is None:
      # Positions do not fall, hence no query of a block sees a key behind its end: half the work where the block is short.
      ends = range(_QUERY_BLOCK, q.shape[1] + _QUERY_BLOCK, _QUERY_BLOCK)
      blocks = [(slice(end - _QUERY_BLOCK, end), slice(end)) for end in ends]
      own_sources = [(k[:, seen], v[:, seen], own_mask[:, own, seen]) for own, seen in blocks]
      parts = [attend(grouped[:, own], [*prompt, source], c.attention) for (own, _), source in zip(blocks, own_sources, strict=True)]
      out = jnp.concatenate(parts, axis=1)
    else:
      out = attend(grouped, [*prompt, (k, v, own_mask)], c.attention)
    out = out.reshape(q.shape)
    x = x + _dense(c.width, ("heads", "head_dim", "embed"), "out", c, axis=(-2, -1))(out)

    y = RMSNorm(c, name="mlp_norm")(x)
    gate = _dense(c.mlp_width, ("embed", "mlp"), "gate", c)(y)
    up = _dense(c.mlp_width, ("embed", "mlp"), "up", c)(y)
    x = x + _dense(c.width, ("mlp", "embed"), "down", c)(nn.silu(gate) * up)
    x = constrain(x, "batch", "seq", None)
    self.sow("intermediates", "output", x)
    return x, (k, v)


class Decoder(nn.Module):
  """Causal language model over text and semantic-ID tokens.

  Parameters may hold, besides those of the model, `memory [S, D]`: embeddings of what has no token, such as the soft slots of items.
  """

  config: ModelConfig

  def setup(self) -> None:
    c = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    self.embedding = self.param("embedding", init, (c.vocab_size, c.width), c.param_dtype)
    self.output = self.embedding if c.tie_embedding else self.param("output", init, (c.vocab_size, c.width), c.param_dtype)
    self.memory = self.get_variable("params", "memory") if self.has_variable("params", "memory") else None
    block = nn.remat(Block, prevent_cse=False) if c.remat else Block
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0, "intermediates": 0},
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
    memory: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | Cache]:
    """Hidden states `[B, T, D]`, and what the tokens leave behind.

    `tokens`, `positions`, `segment_ids [B, T]`; a token sees those tokens of its own segment that stand at no later position than itself
    (so tokens at one position see each other, where they lie in one block of `_QUERY_BLOCK`), 0 is padding and is seen by none.
    Without a cache the second result is `(k, v)`, each `[layers, B, T, KV, Dh]`; with one it is the cache with T more tokens,
    all of one segment. With a prefix every row also sees its prompt (see `Prefix`).
    Where the parameters hold a `memory` the id -1 - s stands for its row s; `memory [B, S, D]` is, for this call, each row's own.
    The collection `intermediates`, for whoever asks for it, holds `embedded [B, T, D]` and of each layer the `output`.
    """
    length = tokens.shape[1]
    if cache is None:
      own = positions[:, :, None] >= positions[:, None, :]
      own &= (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
      cache_kv, written, mask = None, None, None
    else:
      written = cache.length
      mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, segment_ids > 0, written, axis=1)
      # What the mask shows elsewhere is earlier, also behind the place written: a cache may be used as a ring.
      place, step = jnp.arange(cache.mask.shape[1]), written + jnp.arange(length)
      later = (place > step[:, None]) & (place < written + length)
      own = mask[:, None, :] & ~later
      cache_kv = (cache.k, cache.v)
    prefix_kv = None if prefix is None else (prefix.k, prefix.v)
    prefix_mask = None if prefix is None else prefix.mask

    x = constrain(self._embed(tokens, memory).astype(self.config.dtype), "batch", "seq", None)
    self.sow("intermediates", "embedded", x)
    x, (k, v) = self.layers(x, (prefix_kv, cache_kv), (positions, own, prefix_mask, written))
    hidden = self.final_norm(x)
    if cache is None:
      return hidden, (k, v)
    assert mask is not None and written is not None  # as the cache is there
    return hidden, Cache(k=k, v=v, mask=mask, length=written + length)

  def _embed(self, tokens: jax.Array, own: jax.Array | None) -> jax.Array:
    rows = jnp.maximum(-1 - tokens, 0)
    if own is not None:
      held = jnp.take_along_axis(own, rows[..., None], axis=1)
    elif self.memory is not None:
      held = jnp.take(self.memory, rows, axis=0)
    else:
      return jnp.take(self.embedding, tokens, axis=0)
    x = jnp.take(self.embedding, jnp.maximum(tokens, 0), axis=0)
    return jnp.where((tokens < 0)[..., None], held.astype(x.dtype), x)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """The embeddings `[..., D]` of tokens."""
    return jnp.take(self.embedding, tokens, axis=0)

  def example(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest arguments, see `init_boxed`."""
    token = jnp.zeros((1, 1), jnp.int32)
    return token, token, token + 1

  def logits(self, hidden: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
    """Float32 logits `[..., V]` of hidden states `[..., D]`, or `[..., C]`, of tokens `[C]` alone."""
    table = (self.output if tokens is None else self.output[tokens]).astype(self.config.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def table_param(module: nn.Module, name: str, scale: float, *rows: int) -> Any:
  """A parameter `[*rows, D]` of a module that has a `config`: vectors of the model's width, normal with this standard deviation."""
  axes, shape = (*(None for _ in rows), "embed"), (*rows, module.config.width)
  return module.param(name, nn.with_logical_partitioning(nn.initializers.normal(scale), axes), shape)


class Model(Protocol):
  """A Linen module that can tell what it is called with: `example()` gives the smallest arguments."""

  def example(self) -> tuple[Any, ...]: ...

  init: Callable[..., Any]


def init_boxed(model: Model, key: jax.Array) -> Any:
  """Fresh parameters that still carry their logical axes (for `training.mesh.init_sharded`)."""
  return model.init(key, *model.example())["params"]


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: Model, key: jax.Array) -> Any:
  """Fresh parameters as a plain pytree."""
  return nn.unbox(init_boxed(model, key))
