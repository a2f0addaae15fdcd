"""Ranking rewards and metrics of rankings of any leading shape: the kernel on TPU and GPU, plain jnp elsewhere."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from gr2_jax.kernels.rank_reward import pallas, reference
from gr2_jax.kernels.rank_reward.reference import MIN_RAW_STD, STD_FLOOR, RankRewardOptions, RankTerms

__all__ = ["MIN_RAW_STD", "RankRewardOptions", "RankTerms", "group_rank_terms", "rank_terms"]


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
  slates = _fill(labels, shown, upstream, mask, size)
  shared = rankings.ndim > 2 and all(x.ndim in (1, rankings.ndim - 1) for x in slates.values())
  grouped = rankings.reshape(-1, rankings.shape[-2] if shared else 1, size)
  lead = rankings.shape[: -2 if shared else -1]

  def fit(name: str, x: jax.Array) -> jax.Array:
    if not shared and 1 < x.ndim == rankings.ndim - 1:
      x = x[..., None, :]
    return _fit(name, x, (*lead, size), rankings.shape).reshape(-1, size)

  terms, _, _ = group_rank_terms(grouped, **{name: fit(name, x) for name, x in slates.items()}, options=options)
  return jax.tree.map(lambda x: x.reshape(*rankings.shape[:-1], *x.shape[2:]), terms)


@functools.partial(jax.jit, static_argnames=("options", "std_floor", "min_raw_std", "divide_by"))
def group_rank_terms(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array | None = None,
  upstream: jax.Array | None = None,
  mask: jax.Array | None = None,
  shaping: jax.Array | None = None,
  *,
  options: RankRewardOptions,
  std_floor: float = STD_FLOOR,
  min_raw_std: float = MIN_RAW_STD,
  divide_by: str = "std",
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """Terms, group advantages and keep-mask of the rankings `[P, G, K]` of P slates.

  labels, shown, upstream and mask `[P, K]` with the defaults of `rank_terms`; shaping `[P, G]` is added to the reward before it is
  normalised (an overlong penalty; default 0). Returns terms `[P, G]`, advantages `[P, G]`, and keep `[P]`, False for groups whose
  raw ranking reward does not vary (a `min_raw_std` of 0 keeps all); see `objectives.advantages.group_advantages`.
  Raises ValueError where the shapes do not fit.
  """
  if rankings.ndim != 3:
    raise ValueError(f"rankings: shape {rankings.shape} must be [prompts, group, candidates]")
  prompts, group, size = rankings.shape
  slates = {n: _fit(n, x, (prompts, size), rankings.shape) for n, x in _fill(labels, shown, upstream, mask, size).items()}
  shaping = jnp.zeros((prompts, group)) if shaping is None else _fit("shaping", shaping, (prompts, group), rankings.shape)
  normalisation: dict[str, Any] = {"std_floor": std_floor, "min_raw_std": min_raw_std, "divide_by": divide_by}
  return _dispatch(rankings, **slates, shaping=shaping, options=options, **normalisation)


def _fill(
  labels: jax.Array, shown: jax.Array | None, upstream: jax.Array | None, mask: jax.Array | None, size: int
) -> dict[str, jax.Array]:
  natural = jnp.arange(size, dtype=jnp.int32)
  return {
    "labels": labels,
    "shown": natural if shown is None else shown,
    "upstream": natural if upstream is None else upstream,
    "mask": jnp.ones(size, bool) if mask is None else mask,
  }


def _fit(name: str, x: jax.Array, shape: tuple[int, ...], rankings_shape: tuple[int, ...]) -> jax.Array:
  try:
    return jnp.broadcast_to(x, shape)
  except ValueError:
    raise ValueError(f"{name}: shape {x.shape} does not fit rankings {rankings_shape}, whose last axis is the candidates'") from None


def _dispatch(
  rankings: jax.Array, labels: jax.Array, shown: jax.Array, upstream: jax.Array, mask: jax.Array, shaping: jax.Array, **static: Any
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """Runs the platform's path, under a mesh (`jax.set_mesh`) on every device's share of the prompts.

  XLA does not cut a kernel into parts by itself: without the explicit map every device would compute all rows.
  """

  def on_platform(*arrays: jax.Array) -> tuple[RankTerms, jax.Array, jax.Array]:
    def bind(path: Callable[..., Any]) -> Callable[..., Any]:
      return functools.partial(path, **static)

    kernels = {"tpu": bind(pallas.group_rank_terms_tpu), "cuda": bind(pallas.group_rank_terms_triton)}
    if rankings.shape[-1] > pallas.MAX_CANDIDATES:
      kernels = {}
    return jax.lax.platform_dependent(*arrays, default=bind(reference.group_rank_terms), **kernels)

  arrays = (rankings, labels, shown, upstream, mask, shaping)
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)
  if not axes:
    return on_platform(*arrays)
  prompts, shards = len(rankings), math.prod(mesh.shape[name] for name in axes)
  padded = [jnp.pad(x, [(0, -prompts % shards)] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
  # Rows are independent: all axes share them, whatever they are for.
  rows = PartitionSpec(axes)
  results = jax.shard_map(on_platform, in_specs=rows, out_specs=rows, axis_names=set(axes), check_vma=False)(*padded)
  return jax.tree.map(lambda x: x[:prompts], results)
