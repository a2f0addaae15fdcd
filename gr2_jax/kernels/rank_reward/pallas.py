"""The ranking-reward kernel: one body, a TPU and a Triton wrapper.

A block holds some prompts and all their candidates. TPU blocks have the candidates on sublanes and the prompts on lanes, so that a
short list wastes no lanes and sums over candidates are plain additions; Triton blocks have the prompts first, as they lie in
memory. The body is told along which axis its candidates stand and never learns the rest.

It uses what both lowerings share: elementwise operations, `where`, iota, sums and maxima along an axis, `fori_loop`. Element j of each
list is picked by a masked sum.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from gr2_jax.kernels.rank_reward import reference
from gr2_jax.kernels.rank_reward.reference import RankRewardOptions, RankTerms

MAX_CANDIDATES = 1024
_LANES = 128
_TPU_TILE = 8192  # elements of a list block: 8 vector registers an array
_TPU_GROUP_TILE = 1 << 19  # elements of a block of rankings: 2 MiB, held twice for the pipeline
_TRITON_TILE = 1024  # elements of a list block: 8 registers of each of 128 threads an array


def _kernel(
  rankings_ref: Any,
  labels_ref: Any,
  shown_ref: Any,
  upstream_ref: Any,
  mask_ref: Any,
  shaping_ref: Any,
  terms_ref: Any,
  advantages_ref: Any,
  keep_ref: Any,
  *,
  options: RankRewardOptions,
  size: int,
  group: int,
  axis: int,
  **normalisation: Any,
) -> None:
  """Terms of the `group` rankings of each prompt in the block, and their advantages. `size`: candidates without padding."""
  mask = mask_ref[...] > 0
  labels = jnp.where(mask, labels_ref[...], 0.0)
  index = jax.lax.broadcasted_iota(jnp.int32, labels.shape, axis)

  def pick(x: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, x, 0), axis=axis, keepdims=True)

  def read_order(order: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(position: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      rank, listed = state
      hit = (index == pick(order, index == position)) & mask
      return jnp.where(hit & (rank == size), listed, rank), listed + pick(jnp.ones_like(index), hit)

    nobody = jnp.full(labels.shape, size, jnp.int32)
    rank, listed = jax.lax.fori_loop(0, size, step, (nobody, pick(nobody, index < 0)))
    found = reference.count(mask & (rank < size), axis)
    valid_candidates = reference.count(mask, axis)
    return rank, (found == valid_candidates) & (listed.astype(jnp.float32) == valid_candidates)

  def read_ideal_rank() -> jax.Array:
    def step(j: jax.Array, rank: jax.Array) -> jax.Array:
      label = pick(labels, index == j)
      return rank + jnp.where((label > labels) | ((label == labels) & (j < index)), 1, 0)

    return jax.lax.fori_loop(0, size, step, jnp.zeros_like(index))

  shown_rank, _ = read_order(shown_ref[...])
  upstream_rank, _ = read_order(upstream_ref[...])
  ideal_dcgs = reference.compute_dcgs(read_ideal_rank(), reference.compute_gain(labels, options), (*options.cutoffs, size), axis)
  slate = reference.read_slate(labels, mask, shown_rank, upstream_rank, ideal_dcgs, options, axis)

  def count_discordant(rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(position: jax.Array, behind: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      here = rank == position
      later = rank > position
      to_shown = jnp.where(later & (shown_rank < pick(shown_rank, here)), 1.0, 0.0)
      to_upstream = jnp.where(later & (upstream_rank < pick(upstream_rank, here)), 1.0, 0.0)
      return behind[0] + to_shown, behind[1] + to_upstream

    nothing = jnp.zeros(labels.shape, jnp.float32)
    to_shown, to_upstream = jax.lax.fori_loop(0, size, step, (nothing, nothing))
    return jnp.sum(to_shown, axis=axis, keepdims=True), jnp.sum(to_upstream, axis=axis, keepdims=True)

  member_index = jax.lax.broadcasted_iota(jnp.int32, shaping_ref.shape, axis)

  def score_member(member: jax.Array, rewards: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    rank, valid = read_order(rankings_ref[member])
    terms = reference.score(rank, valid, count_discordant(rank), slate, options, axis)
    for row, value in enumerate(jax.tree.leaves(terms)):
      terms_ref[member, row, :] = jnp.squeeze(value, axis)
    here = member_index == member
    return jnp.where(here, terms.reward, rewards[0]), jnp.where(here, terms.rank_reward, rewards[1])

  nothing = jnp.zeros(shaping_ref.shape, jnp.float32)
  reward, raw = jax.lax.fori_loop(0, group, score_member, (nothing, nothing))
  advantages, keep = reference.normalise_groups(reward + shaping_ref[...], raw, group=group, axis=axis, **normalisation)
  advantages_ref[...] = advantages
  keep_ref[...] = keep.astype(jnp.float32)


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def _width(size: int) -> int:
  return max(8, _power_of_two(size))


def _structure(options: RankRewardOptions) -> jax.tree_util.PyTreeDef:
  per_cutoff = (0,) * len(options.cutoffs)
  fields: dict[str, Any] = dict.fromkeys(RankTerms._fields, 0) | {"recall": per_cutoff, "ndcg": per_cutoff}
  return jax.tree.structure(RankTerms(**fields))


def _call(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array,
  upstream: jax.Array,
  mask: jax.Array,
  shaping: jax.Array,
  *,
  options: RankRewardOptions,
  rows: int,
  axis: int,
  compiler_params: Any,
  interpret: Any,
  **normalisation: Any,
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """Pads to blocks of `rows` prompts, runs the kernel, and cuts the results back; takes and returns what the wrappers do."""
  prompts, group, size = rankings.shape
  padded_prompts = pl.cdiv(prompts, rows) * rows
  structure = _structure(options)

  def lay(x: jax.Array, extent: int, dtype: Any) -> jax.Array:  # [P, ..., K] to [..., extent, P] or [..., P, extent]
    x = jnp.moveaxis(x.astype(dtype), 0, -2)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, padded_prompts - prompts), (0, extent - x.shape[-1])])
    return jnp.swapaxes(x, -1, -2) if axis == 0 else x

  def block(extent: int, *lead: int) -> pl.BlockSpec:
    if axis == 0:
      return pl.BlockSpec((*lead, extent, rows), lambda i: (*[0] * len(lead), 0, i))
    return pl.BlockSpec((*lead, rows, extent), lambda i: (*[0] * len(lead), i, 0))

  def output(extent: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((extent, padded_prompts) if axis == 0 else (padded_prompts, extent), jnp.float32)

  width, members, num_terms = _width(size), _power_of_two(group), structure.num_leaves
  terms, advantages, keep = pl.pallas_call(
    functools.partial(_kernel, options=options, size=size, group=group, axis=axis, **normalisation),
    grid=(padded_prompts // rows,),
    in_specs=[block(width, group), *[block(width)] * 4, block(members)],
    out_specs=[pl.BlockSpec((group, num_terms, rows), lambda i: (0, 0, i)), block(members), block(1)],
    out_shape=[jax.ShapeDtypeStruct((group, num_terms, padded_prompts), jnp.float32), output(members), output(1)],
    compiler_params=compiler_params,
    interpret=interpret,
    name="rank_reward",
  )(
    lay(rankings, width, jnp.int32),
    lay(labels, width, jnp.float32),
    *(lay(x, width, jnp.int32) for x in (shown, upstream, mask)),
    lay(shaping, members, jnp.float32),
  )
  if axis == 0:
    advantages, keep = advantages.T, keep.T
  rows_of_terms = [terms[:, row, :prompts].T for row in range(num_terms)]
  return (
    reference.stack_cutoffs(jax.tree.unflatten(structure, rows_of_terms)),
    advantages[:prompts, :group],
    keep[:prompts, 0] > 0,
  )


def group_rank_terms_tpu(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array,
  upstream: jax.Array,
  mask: jax.Array,
  shaping: jax.Array,
  *,
  options: RankRewardOptions,
  interpret: Any = False,
  **normalisation: Any,
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """`reference.group_rank_terms` on a TPU. Lists of at most MAX_CANDIDATES."""
  prompts, group, size = rankings.shape
  width = _width(size)
  most_rows = min(_TPU_TILE // width, _TPU_GROUP_TILE // (width * _power_of_two(group)))
  if _LANES * width * _power_of_two(group) > _TPU_GROUP_TILE:
    # So many rankings of so long a list don't fit into the vector memory at once: each goes alone, the groups are normalised outside.
    slates = (jnp.repeat(x, group, axis=0) for x in (labels, shown, upstream, mask))
    alone = (rankings.reshape(-1, 1, size), *slates, jnp.zeros((prompts * group, 1)))
    terms, _, _ = group_rank_terms_tpu(*alone, options=options, interpret=interpret, **normalisation)
    terms = jax.tree.map(lambda x: x.reshape(prompts, group, *x.shape[2:]), terms)
    return terms, *reference.shaped_advantages(terms, shaping, **normalisation)
  rows = min(max(_LANES, most_rows), pl.cdiv(prompts, _LANES) * _LANES)
  params = pltpu.CompilerParams(dimension_semantics=("parallel",))
  static = {"options": options, "rows": rows, "axis": 0, "compiler_params": params, "interpret": interpret}
  return _call(rankings, labels, shown, upstream, mask, shaping, **static, **normalisation)


def group_rank_terms_triton(
  rankings: jax.Array,
  labels: jax.Array,
  shown: jax.Array,
  upstream: jax.Array,
  mask: jax.Array,
  shaping: jax.Array,
  *,
  options: RankRewardOptions,
  interpret: Any = False,
  **normalisation: Any,
) -> tuple[RankTerms, jax.Array, jax.Array]:
  """`reference.group_rank_terms` on a GPU. Lists of at most MAX_CANDIDATES."""
  rows = _TRITON_TILE // _width(rankings.shape[-1])
  params = plgpu.CompilerParams(num_warps=4)
  static = {"options": options, "rows": rows, "axis": 1, "compiler_params": params, "interpret": interpret}
  return _call(rankings, labels, shown, upstream, mask, shaping, **static, **normalisation)
