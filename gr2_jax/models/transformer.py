"""The decoder in Linen: layers scanned, attention over a shared prompt, a cache and itself.

RMSNorm, grouped-query attention, rotary positions on halves, a gated MLP; what families do differently `ModelConfig` says.
Only this folder knows modules; everything else calls `decoder.apply` on a parameter pytree.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.attention import Source, attend
from gr2_jax.models.cache import Cache, Prefix
from gr2_jax.models.config import ModelConfig
from gr2_jax.training.mesh import constrain

_QUERY_BLOCK = 256


def _rope_frequencies(config: ModelConfig) -> jax.Array:
  """Radians a position, `[Dh / 2]`, of the pairs in layers that are not local."""
  frequencies = _frequencies(config.rope_base, config.head_dim)
  if config.rope_stretch != 1:
    frequencies /= config.rope_stretch
  if (scaled := config.llama3_rope) is None:
    return frequencies
  # In turns over the first context: a pair of `low` turns or fewer is stretched, one of `high` or more stays.
  turns = scaled.length / (2 * jnp.pi) * frequencies
  kept = jnp.clip((turns - scaled.low) / (scaled.high - scaled.low), 0, 1)
  return frequencies * (kept + (1 - kept) / scaled.factor)


def _frequencies(base: float, head_dim: int) -> jax.Array:
  half = head_dim // 2
  return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
  """Rotary position embedding on halves. `x [B, T, H, Dh]`, `positions [B, T]`, `frequencies [Dh / 2]`."""
  half = x.shape[-1] // 2
  angle = positions[:, :, None, None].astype(jnp.float32) * frequencies
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


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


class _Dense(nn.DenseGeneral):
  """x W; where its parameters hold `lora_a [*inputs, r]` and `lora_b [r, *outputs]` (see `models.adapters`), x W + (x A) B."""

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    outputs = super().__call__(inputs)
    if not self.has_variable("params", "lora_a"):
      return outputs
    a, b = (self.get_variable("params", name).astype(self.dtype) for name in ("lora_a", "lora_b"))
    read = a.ndim - 1
    axes = tuple(range(inputs.ndim - read, inputs.ndim)), tuple(range(read))
    inner = _product(inputs.astype(self.dtype), a, (axes, ((), ())))
    return outputs + _product(inner, b, (((inner.ndim - 1,), (0,)), ((), ())))


def _dense(
  features: int | tuple[int, ...], axes: tuple[str, ...], name: str, config: ModelConfig, axis: int | tuple[int, ...] = -1
) -> _Dense:
  return _Dense(
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
  """x / rms(x) * (offset + scale) over the last axis, in float32; a new one multiplies by 1."""

  config: ModelConfig
  axis_name: str = "embed"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    offset = self.config.norm_offset
    init = nn.with_logical_partitioning(nn.initializers.constant(1 - offset), (self.axis_name,))
    scale = self.param("scale", init, (x.shape[-1],), self.config.param_dtype)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps)
    return ((offset + scale if offset else scale) * wide).astype(x.dtype)


class _Shared(NamedTuple):
  """What all layers are told: positions `[B, T]` of the tokens; masks of own or cached keys `[B, T, L]` and of the prefix, `[P, 1, Lp]` or
  by row; the same masks within the window of local layers, if there are any; and the place in the cache that is written next."""

  positions: jax.Array
  masks: tuple[jax.Array, jax.Array | None]
  near: tuple[jax.Array, jax.Array | None] | None
  written: jax.Array | None


class Block(nn.Module):
  """One layer; `layer` is its slice of prefix and cache, and whether it is local (None where no layer is).

  Whoever asks for the collection `intermediates` finds the layer's `output [B, T, D]` there.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, layer: tuple[Any, Any, Any], shared: _Shared) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    c = self.config
    prefix_kv, cache_kv, is_local = layer
    frequencies, (own_mask, prefix_mask) = _rope_frequencies(c), shared.masks
    if c.local is not None and shared.near is not None:
      frequencies = jnp.where(is_local, _frequencies(c.local.rope_base, c.head_dim), frequencies)
      own_mask, prefix_mask = jax.tree.map(lambda near, whole: jnp.where(is_local, near, whole), shared.near, shared.masks)

    y = RMSNorm(c, name="attention_norm")(x)
    q = _dense((c.num_heads, c.head_dim), ("embed", "heads", "head_dim"), "q", c)(y)
    k = _dense((c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "k", c)(y)
    v = _dense((c.num_kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), "v", c)(y)
    if c.qk_norm:
      q, k = RMSNorm(c, "head_dim", name="q_norm")(q), RMSNorm(c, "head_dim", name="k_norm")(k)
    q, k = rotate(q, shared.positions, frequencies), rotate(k, shared.positions, frequencies)
    if c.query_scale is not None:  # attention itself multiplies by head_dim^-1/2
      q *= c.query_scale * c.head_dim**0.5
    if cache_kv is not None:
      assert shared.written is not None  # as the cache is there
      k = jax.lax.dynamic_update_slice_in_dim(cache_kv[0], k, shared.written, axis=1)
      v = jax.lax.dynamic_update_slice_in_dim(cache_kv[1], v, shared.written, axis=1)
    prompt: list[Source] = [] if prefix_kv is None else [(*prefix_kv, prefix_mask)]
    grouped = q.reshape(*q.shape[:2], c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
    if cache_kv is None:
      # Positions do not fall, hence no query of a block sees a key behind its end: half the work where the block is short.
      ends = range(_QUERY_BLOCK, q.shape[1] + _QUERY_BLOCK, _QUERY_BLOCK)
      blocks = [(slice(end - _QUERY_BLOCK, end), slice(end)) for end in ends]
      parts = []
      for own, seen in blocks:
        of_prompt = [(read_k, read_v, mask[:, own] if mask.shape[1] > 1 else mask) for read_k, read_v, mask in prompt]
        parts.append(attend(grouped[:, own], [*of_prompt, (k[:, seen], v[:, seen], own_mask[:, own, seen])], c.attention))
      out = jnp.concatenate(parts, axis=1)
    else:
      out = attend(grouped, [*prompt, (k, v, own_mask)], c.attention)
    out = _dense(c.width, ("heads", "head_dim", "embed"), "out", c, axis=(-2, -1))(out.reshape(q.shape))
    x = x + (RMSNorm(c, name="attention_out_norm")(out) if c.extra_norms else out)

    y = RMSNorm(c, name="mlp_norm")(x)
    gate = _dense(c.mlp_width, ("embed", "mlp"), "gate", c)(y)
    up = _dense(c.mlp_width, ("embed", "mlp"), "up", c)(y)
    y = _dense(c.width, ("mlp", "embed"), "down", c)(_ACTIVATIONS[c.activation](gate) * up)
    x = x + (RMSNorm(c, name="mlp_out_norm")(y) if c.extra_norms else y)
    x = constrain(x, "batch", "seq", None)
    self.sow("intermediates", "output", x)
    return x, (k, v)


_ACTIVATIONS = {"silu": nn.silu, "gelu": functools.partial(nn.gelu, approximate=True)}


class Decoder(nn.Module):
  """Causal language model over text and semantic-ID tokens.

  Parameters may hold, besides those of the model, `memory [S, D]`: embeddings of what has no token, such as the soft slots of items; and
  adapters (`models.adapters`), beside the kernels and as rows that take the place of the last ones of the token tables.
  """

  config: ModelConfig

  def setup(self) -> None:
    c = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    self.embedding = self.param("embedding", init, (c.vocab_size, c.width), c.param_dtype)
    self.output = self.embedding if c.tie_embedding else self.param("output", init, (c.vocab_size, c.width), c.param_dtype)
    self.memory, self.embedding_rows, output_rows = (
      self.get_variable("params", name) if self.has_variable("params", name) else None
      for name in ("memory", "embedding_rows", "output_rows")
    )
    self.output_rows = self.embedding_rows if c.tie_embedding else output_rows
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
    c, length = self.config, tokens.shape[1]
    if cache is None:
      own = positions[:, :, None] >= positions[:, None, :]
      own &= (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] > 0)
      cache_kv, written, mask, places = None, None, None, positions
    else:
      written = cache.length
      mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, segment_ids > 0, written, axis=1)
      places = jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, written, axis=1)
      # What the mask shows elsewhere is earlier, also behind the place written: a cache may be used as a ring.
      place, step = jnp.arange(cache.mask.shape[1]), written + jnp.arange(length)
      later = (place > step[:, None]) & (place < written + length)
      own = mask[:, None, :] & ~later
      cache_kv = (cache.k, cache.v)
    prefix_kv = None if prefix is None else (prefix.k, prefix.v)
    whole = (own, None if prefix is None else prefix.mask[:, None, :])
    near, is_local = None, None
    if (local := c.local) is not None:
      is_local = jnp.array(local.layers)
      if prefix is not None:  # rows of a group stand at places of their own, and so do their windows
        prefix_places, seen = (jnp.repeat(x, len(tokens) // len(x), axis=0) for x in (prefix.positions, prefix.mask))
        whole = (own, seen[:, None, :])
      of_keys = (places, None if prefix is None else prefix_places)
      near = jax.tree.map(lambda mask, at: mask & (positions[:, :, None] - at[:, None, :] < local.window), whole, of_keys)

    x = constrain(self._embed(tokens, memory).astype(c.dtype), "batch", "seq", None)
    self.sow("intermediates", "embedded", x)
    x, (k, v) = self.layers(x, (prefix_kv, cache_kv, is_local), _Shared(positions, whole, near, written))
    hidden = self.final_norm(x)
    if cache is None:
      return hidden, (k, v)
    assert mask is not None and written is not None  # as the cache is there
    return hidden, Cache(k=k, v=v, mask=mask, positions=places, length=written + length)

  def _embed(self, tokens: jax.Array, own: jax.Array | None) -> jax.Array:
    rows = jnp.maximum(-1 - tokens, 0)
    if own is not None:
      held = jnp.take_along_axis(own, rows[..., None], axis=1)
    elif self.memory is not None:
      held = jnp.take(self.memory, rows, axis=0)
    else:
      return self.embed(tokens)
    x = self.embed(jnp.maximum(tokens, 0))
    return jnp.where((tokens < 0)[..., None], held.astype(x.dtype), x)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """What is read `[..., D]` of tokens."""
    x, scale = self._rows(jnp.take(self.embedding, tokens, axis=0), self.embedding_rows, tokens), self.config.embed_scale
    # In the activations' type, as the published weights were trained.
    return x if scale == 1 else x.astype(self.config.dtype) * jnp.asarray(scale, self.config.dtype)

  def example(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest arguments, see `init_boxed`."""
    token = jnp.zeros((1, 1), jnp.int32)
    return token, token, token + 1

  def logits(self, hidden: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
    """Float32 logits `[..., V]` of hidden states `[..., D]`, or `[..., C]`, of tokens `[C]` alone."""
    table = self.output if tokens is None else self._rows(self.output[tokens], self.output_rows, tokens)
    logits = self._products(hidden, table)
    if tokens is None and self.output_rows is not None:
      last = self._products(hidden, self.output_rows)
      logits = jax.lax.dynamic_update_slice_in_dim(logits, last, len(table) - len(self.output_rows), axis=-1)
    return logits if (cap := self.config.logits_cap) is None else cap * jnp.tanh(logits / cap)

  def _rows(self, found: jax.Array, last: jax.Array | None, tokens: jax.Array) -> jax.Array:
    """Rows `[..., D]` that were found of a token table, but for those of its last tokens, which `last [n, D]` has where there are any."""
    if last is None:
      return found
    place = tokens - (self.config.vocab_size - len(last))
    return jnp.where((place >= 0)[..., None], jnp.take(last, jnp.maximum(place, 0), axis=0).astype(found.dtype), found)

  def _products(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.einsum("...d,vd->...v", hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)


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


def abstract_boxed(model: Model) -> Any:
  """What `init_boxed` gives, as shapes."""
  return jax.eval_shape(lambda key: init_boxed(model, key), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: Model, key: jax.Array) -> Any:
  """Fresh parameters as a plain pytree."""
  return nn.unbox(init_boxed(model, key))
