"""Attention over several sources of keys and values: a prompt that a group shares, a cache, and the tokens themselves."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from gr2_jax.numerics import OUT_OF_REACH

# Keys, values `[S, L, KV, Dh]` and a mask that broadcasts to `[S, T, L]`, or to `[B, T, L]` where B rows share S of them.
Source = tuple[jax.Array, jax.Array, jax.Array]
# For the backward pass: queries, sources, the result, and each source's log-sum-exp, folded.
_Kept = tuple[jax.Array, list[Source], jax.Array, list[jax.Array]]


def attend(q: jax.Array, sources: list[Source], implementation: str = "matrices") -> jax.Array:
  """One softmax over several sources of keys and values.

  `q [B, T, KV, R, Dh]` (R query heads for each key head). A source is `k, v [S, L, KV, Dh]` with a mask that broadcasts to
  `[S, T, L]`: S may divide B, and then each B/S successive rows of `q` share one row of the source, under a mask of S rows or of B.
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
  # As `_fold` has them: rows, key heads, what shares a row, queries of a head, tokens.
  shared, masks = len(q) // rows, max(len(mask) // rows, 1)
  shape = (rows, scores.shape[0] // rows, shared, -1, q.shape[1], keys)
  mask = mask.reshape(-1, 1, masks, 1, *mask.shape[1:])
  return (scores.reshape(shape) + jnp.where(mask, 0.0, OUT_OF_REACH)).reshape(scores.shape)


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
