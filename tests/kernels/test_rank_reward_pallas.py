"""The ranking-reward kernel against its specification: interpreted, sharded, and lowered for both accelerators."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

from gr2_jax.kernels.rank_reward import api, conditions, pallas, reference
from gr2_jax.kernels.rank_reward.api import RankRewardOptions
from gr2_jax.objectives.advantages import group_advantages

KERNELS = {"tpu": pallas.group_rank_terms_tpu, "triton": pallas.group_rank_terms_triton}
OPTIONS = RankRewardOptions(cutoffs=(1, 3, 20))


def make_groups(seed, prompts, group, size, integer=np.int32):
  """Random groups with padded slates, graded labels, invalid answers, and padding candidates standing anywhere in the orders."""
  rng = np.random.default_rng(seed)
  permute = lambda *lead: rng.permuted(np.broadcast_to(np.arange(size), (*lead, size)), axis=-1)
  rankings, shown, upstream = permute(prompts, group), permute(prompts), permute(prompts)
  rankings[:, 1::4] = shown[:, None]  # a copy
  rankings[:, 2::4] = -1
  rankings[:, 3::4, 0] = rankings[:, 3::4, -1]  # a candidate twice, another not at all
  mask = rng.random((prompts, size)) < rng.choice([0.0, 0.6, 1.0], (prompts, 1))
  labels = rng.integers(0, 3, (prompts, size))
  shaping = np.where(rng.random((prompts, group)) < 0.5, -rng.random((prompts, group)), 0).astype(np.float32)
  orders = [x.astype(integer) for x in (rankings, labels, shown, upstream)]
  return [jnp.asarray(x) for x in (*orders, mask, shaping)]


def run(path, args, options=OPTIONS, min_raw_std=1e-6, divide_by="std", **kwargs):
  static = {"options": options, "std_floor": 1e-4, "min_raw_std": min_raw_std, "divide_by": divide_by}
  return jax.jit(functools.partial(path, **static, **kwargs))(*args)


def assert_same(got, expected):
  named = jax.tree_util.tree_leaves_with_path(got)
  for (path, a), b in zip(named, jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype, path
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=3e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_reference(kernel):
  args = make_groups(0, prompts=9, group=5, size=11)
  terms, advantages, keep = run(KERNELS[kernel], args, interpret=True)
  assert_same((terms, advantages, keep), run(reference.group_rank_terms, args))
  # What is compared isn't all zeros: there are valid and invalid answers, kept and dropped groups.
  assert 0 < float(terms.valid.mean()) < 1 and float(keep.mean()) > 0 and float(jnp.abs(advantages).max()) > 0.5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("divide_by", ["none", "mean"])
def test_kernel_equals_reference_without_standard_deviation_or_filter(kernel, divide_by):
  args = make_groups(6, prompts=5, group=4, size=6)
  choices = {"min_raw_std": 0.0, "divide_by": divide_by}
  terms, advantages, keep = run(KERNELS[kernel], args, **choices, interpret=True)
  assert_same((terms, advantages, keep), run(reference.group_rank_terms, args, **choices))
  rewards = terms.reward + args[-1]
  mean = rewards.mean(axis=-1, keepdims=True)
  by_hand = (rewards - mean) / (jnp.maximum(mean, 1e-4) if divide_by == "mean" else 1)
  np.testing.assert_allclose(advantages, by_hand, rtol=1e-4, atol=1e-5)
  assert keep.all()


def sweep(kernel, data, sizes):
  options = RankRewardOptions(
    cutoffs=tuple(data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))),
    gain=data.draw(st.sampled_from(["exponential", "linear"])),
    rank=data.draw(st.sampled_from(["promotion", "auc", "ndcg"])),
    condition=data.draw(st.sampled_from(list(conditions.CONDITIONS))),
    alpha=data.draw(st.sampled_from([0.0, 0.1, 0.2])),
    invalid=data.draw(st.sampled_from([-1.0, 0.0])),
  )
  prompts, group, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), data.draw(sizes)
  args = make_groups(data.draw(st.integers(0, 2**31)), prompts, group, size, data.draw(st.sampled_from([np.int8, np.int16, np.int32])))
  assert_same(run(KERNELS[kernel], args, options, interpret=True), run(reference.group_rank_terms, args, options))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_kernel_equals_reference_over_a_wide_sweep(kernel, data):
  sweep(kernel, data, sizes=st.integers(1, 40))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [100, 1000, 1024])
def test_kernel_equals_reference_on_long_lists(kernel, size):
  args = make_groups(size, prompts=3, group=2, size=size)
  options = RankRewardOptions(cutoffs=(5, 500))
  assert_same(run(KERNELS[kernel], args, options, interpret=True), run(reference.group_rank_terms, args, options))


@pytest.mark.slow
def test_groups_too_large_for_a_tpu_block_are_normalised_outside():
  args = make_groups(3, prompts=2, group=8, size=1024)
  assert_same(run(pallas.group_rank_terms_tpu, args, interpret=True), run(reference.group_rank_terms, args))


@pytest.mark.slow
def test_kernel_reads_no_memory_it_did_not_write():
  args = make_groups(1, prompts=5, group=3, size=6)
  params = pltpu.InterpretParams(uninitialized_memory="nan")
  assert_same(run(pallas.group_rank_terms_tpu, args, interpret=params), run(reference.group_rank_terms, args))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_dispatch_lowers_to_the_kernel(platform):
  args = make_groups(0, prompts=3, group=2, size=10)
  # From jax 0.12 on Triton's lowering wants to know the GPU; what tells it lets the kernel alone, as on a manual axis.
  device = AbstractDevice("NVIDIA H100", None, "gpu")
  mesh = AbstractMesh((1,), ("alone",), axis_types=(AxisType.Manual,), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh) if platform == "cuda" else contextlib.nullcontext():
    lowered = api.group_rank_terms.trace(*args, options=OPTIONS).lower(lowering_platforms=(platform,)).as_text()
  assert "custom_call" in lowered and ("tpu_custom_call" if platform == "tpu" else "triton") in lowered


def test_group_terms_are_the_flat_terms_and_their_advantages():
  args = make_groups(2, prompts=6, group=4, size=7)
  terms, advantages, keep = api.group_rank_terms(*args, options=OPTIONS)
  rankings, *slates, shaping = args
  flat = api.rank_terms(rankings.reshape(-1, 7), *(jnp.repeat(x, 4, axis=0) for x in slates), options=OPTIONS)
  for a, b in zip(terms, flat, strict=True):
    np.testing.assert_array_equal(a.reshape(b.shape), b)
  expected = group_advantages(terms.reward + shaping, terms.rank_reward)
  np.testing.assert_allclose(advantages, expected[0], atol=1e-6)
  np.testing.assert_array_equal(keep, expected[1])


@pytest.mark.parametrize("prompts", [16, 13])  # 13: padded to the eight devices
def test_sharding_changes_no_bit(prompts):
  args = make_groups(4, prompts=prompts, group=3, size=10)
  alone = api.group_rank_terms(*args, options=OPTIONS)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    if prompts % 4 == 0:
      args = jax.device_put(args, NamedSharding(mesh, PartitionSpec("data")))
    sharded = api.group_rank_terms(*args, options=OPTIONS)
  if prompts == 16:
    assert len(sharded[1].sharding.device_set) == 8
  for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(alone), strict=True):
    np.testing.assert_array_equal(a, b)


def test_long_lists_need_no_pairs_in_memory():
  # 64 lists of 3,000: pairs would take 64 * 3,000^2 * 4 bytes = 2.3 GB an array.
  shape = jax.ShapeDtypeStruct((64, 3000), jnp.int32)
  compiled = api.rank_terms.lower(shape, shape, options=OPTIONS).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 64e6


def test_long_lists_find_the_same_ideal_order():
  # Above SHORT_LIST candidates the ideal order comes from a sort, below from counting: padding takes a list from one to the other.
  rng = np.random.default_rng(5)
  size, padding = reference.SHORT_LIST, 6
  rankings, labels = rng.permuted(np.tile(np.arange(size), (4, 1)), axis=1), rng.integers(0, 3, (4, size))
  pad = lambda x, fill: jnp.asarray(np.pad(x, ((0, 0), (0, padding)), constant_values=fill))
  short = api.rank_terms(rankings, labels, options=OPTIONS)
  long = api.rank_terms(pad(rankings, -1), pad(labels, 0), mask=pad(np.ones_like(labels), 0), options=OPTIONS)
  for name in ("ndcg", "ndcg_reward"):
    np.testing.assert_allclose(getattr(short, name), getattr(long, name), atol=1e-6)


def test_group_shapes_that_do_not_fit_are_named():
  rankings, labels, *_ = make_groups(0, 2, 3, 4)
  with pytest.raises(ValueError, match="rankings: shape"):
    api.group_rank_terms(rankings[0], labels, options=OPTIONS)
  with pytest.raises(ValueError, match="shaping: shape"):
    api.group_rank_terms(rankings, labels, shaping=jnp.zeros((2, 4)), options=OPTIONS)
