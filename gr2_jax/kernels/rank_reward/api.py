"""Ranking rewards and metrics of rankings of any leading shape."""

import functools

import jax
import jax.numpy as jnp

from gr2_jax.kernels.rank_reward import reference
from gr2_jax.kernels.rank_reward.reference import RankRewardOptions, RankTerms

__all__ = ["RankRewardOptions", "RankTerms", "rank_terms"]


@functools.partial(jax.jit, static_argnames="options")
def rank_terms(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array | None = None,
  upstream: jax.Array | None = None,
  mask: jax.Array | None = None,
  *,
  options: RankRewardOptions,
) -> RankTerms:
  """All terms of every ranking; see `reference.rank_terms`.

  rankings `[..., K]`, for example `[N, K]` or groups `[P, G, K]`; the others `[..., K]` likewise, or `[P, K]` where the
  G rankings of a prompt share them. By default the slate was shown in the upstream order, which is that of the candidate
  indices, and every candidate is valid. Returns terms with the leading shape of `rankings`.
  Raises ValueError where the shapes do not fit.
  """
  size = rankings.shape[-1]
  natural = jnp.arange(size, dtype=jnp.int32)
  filled = {
    "labels": labels,
    "shown": natural if shown is None else shown,
    "upstream": natural if upstream is None else upstream,
    "mask": jnp.ones(size, bool) if mask is None else mask,
  }

  def spread(name, x):
    if x.ndim == rankings.ndim - 1 and x.ndim > 1:
      x = x[..., None, :]
    try:
      return jnp.broadcast_to(x, rankings.shape).reshape(-1, size)
    except ValueError:
      raise ValueError(f"{name}: shape {x.shape} does not fit rankings {rankings.shape}; the last axis is the candidates'") from None

  terms = reference.rank_terms(rankings.reshape(-1, size), **{k: spread(k, v) for k, v in filled.items()}, options=options)
  return jax.tree.map(lambda x: x.reshape(*rankings.shape[:-1], *x.shape[1:]), terms)
