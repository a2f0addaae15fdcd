"""The ranking-reward specification: hand-derived values, agreement with rax, degenerate slates, invariants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.kernels.rank_reward import api, conditions
from gr2_jax.kernels.rank_reward.api import RankRewardOptions

DEFAULT = RankRewardOptions(cutoffs=(1, 2, 3))

CONDITIONS = list(conditions.CONDITIONS)


def terms_of(ranking, labels, shown=None, mask=None, options=DEFAULT):
  args = [None if x is None else jnp.asarray([x]) for x in (ranking, labels, shown, None, mask)]
  return jax.tree.map(lambda x: np.asarray(x[0]), api.rank_terms(*args, options=options))


def test_hand_derived_terms():
  # Candidates 0..3 in upstream order, labels 0 1 0 2; the answer puts 3 first, then 0, 1, 2.
  terms = terms_of([3, 0, 1, 2], [0, 1, 0, 2])
  # Positives 1 (rank 2) and 3 (rank 0): one of two within the first, one within two, both within three.
  np.testing.assert_allclose(terms.recall, [0.5, 0.5, 1.0])
  assert terms.mrr == 1.0
  # Pairs (positive, negative): 3 before 0, 3 before 2, 1 before 2 are right, 1 stands after 0: 3 of 4.
  assert terms.auc == 0.75
  # Gains 2^2-1 = 3 at rank 0 and 2^1-1 = 1 at rank 2 (discount 1/log2 4); ideal: 3 at rank 0, 1 at rank 1 (1/log2 3).
  np.testing.assert_allclose(terms.ndcg_reward, (3 + 1 / 2) / (3 + 1 / np.log2(3)), rtol=1e-6)
  # NDCG@2 sees the 3 alone, NDCG@1 is perfect.
  np.testing.assert_allclose(terms.ndcg, [1.0, 3 / (3 + 1 / np.log2(3)), terms.ndcg_reward], rtol=1e-6)
  # The target is the best label, candidate 3: from upstream rank 3 to rank 0, of 4 candidates.
  assert terms.promotion == 0.75
  # Against 0 1 2 3, the pairs (0,3), (1,3), (2,3) are turned round: tau = 1 - 2*3/6.
  np.testing.assert_allclose(terms.tau_to_upstream, 0.0, atol=1e-6)
  assert terms.identity_to_upstream == 0 and terms.near_identity_to_upstream == 0 and terms.valid == 1


def test_linear_gain():
  terms = terms_of([1, 0], [2, 1], options=RankRewardOptions(cutoffs=(2,), gain="linear"))
  # Gains 1 then 2, ideal 2 then 1.
  np.testing.assert_allclose(terms.ndcg_reward, (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)), rtol=1e-6)


def test_promotion_takes_the_first_of_the_best_labelled():
  # Two conversions, 1 and 2; the target is the one upstream put higher, 1: it falls from rank 1 to rank 2 of 3.
  np.testing.assert_allclose(terms_of([2, 0, 1], [1, 2, 2]).promotion, -1 / 3, rtol=1e-6)


def test_copies_are_told_from_near_copies():
  shown = [2, 0, 1, 3]
  copy_of_shown = terms_of([2, 0, 1, 3], [1, 0, 0, 0], shown)
  assert copy_of_shown.identity_to_shown == 1 and copy_of_shown.identity_to_upstream == 0
  assert copy_of_shown.near_identity_to_shown == 1 and copy_of_shown.tau_to_shown == 1
  swapped_tail = terms_of([2, 0, 3, 1], [1, 0, 0, 0], shown)
  assert swapped_tail.identity_to_shown == 0 and swapped_tail.near_identity_to_shown == 1
  # A cycle of three moves three candidates: no longer one swap.
  assert terms_of([0, 1, 2, 3], [1, 0, 0, 0], shown).near_identity_to_shown == 0
  # One swap of the ends is near, however far the two stand apart.
  assert terms_of([3, 0, 1, 2], [1, 0, 0, 0], shown).near_identity_to_shown == 1


@pytest.mark.parametrize("ranking", [[-1, -1, -1], [0, 1, -1], [0, 0, 1], [0, 1, 3], [1, 1, 1]])
def test_anything_but_a_full_permutation_is_invalid_and_scores_nothing(ranking):
  terms = terms_of(ranking, [1, 0, 0])
  assert terms.reward == -1 and terms.rank_reward == -1
  for name in set(terms._fields) - {"reward", "rank_reward"}:
    assert not np.any(getattr(terms, name)), name


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("rank", ["promotion", "auc", "ndcg"])
def test_degenerate_slates_have_declared_outcomes(rank, condition):
  options = RankRewardOptions(rank=rank, condition=condition)
  orders = jnp.asarray([list(p) for p in itertools.permutations(range(3))] + [[-1] * 3])
  mask = jnp.ones(orders.shape, bool)
  for labels, auc in (([0, 0, 0], 0.0), ([1, 1, 1], 1.0)):
    terms = api.rank_terms(orders, jnp.broadcast_to(jnp.asarray(labels), orders.shape), mask=mask, options=options)
    assert all(np.isfinite(x).all() for x in terms)
    np.testing.assert_array_equal(terms.auc[:-1], auc)
    if rank != "promotion":  # promotion follows one target, and so still tells the orders apart
      assert np.ptp(terms.rank_reward[:-1]) < 1e-6
  nothing = api.rank_terms(orders, jnp.zeros_like(orders), mask=~mask, options=options)
  assert all(np.isfinite(x).all() for x in nothing)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["exponential", "linear"]), st.booleans())
def test_metrics_agree_with_rax(seed, gain, single_target):
  rng = np.random.default_rng(seed)
  n, k, cutoffs = 16, 7, (1, 3, 5, 10)
  rankings = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)
  labels = np.eye(k)[rng.integers(k, size=n)] if single_target else rng.integers(0, 3, (n, k))
  mask = rng.random((n, k)) < 0.8
  labels = labels.astype(np.float32)
  terms = api.rank_terms(rankings, labels, mask=mask, options=RankRewardOptions(cutoffs=cutoffs, gain=gain))
  scores = -np.argsort(rankings, axis=1).astype(np.float32)
  gain_fn = (lambda x: jnp.exp2(x) - 1) if gain == "exponential" else (lambda x: x)

  def oracle(metric, **options):
    return metric(jnp.asarray(scores), jnp.asarray(labels), where=jnp.asarray(mask), reduce_fn=None, **options)

  for i, cutoff in enumerate(cutoffs):
    np.testing.assert_allclose(terms.recall[:, i], oracle(rax.recall_metric, topn=cutoff), atol=1e-6)
    np.testing.assert_allclose(terms.ndcg[:, i], oracle(rax.ndcg_metric, topn=cutoff, gain_fn=gain_fn), atol=1e-6)
  np.testing.assert_allclose(terms.ndcg_reward, oracle(rax.ndcg_metric, gain_fn=gain_fn), atol=1e-6)
  np.testing.assert_allclose(terms.mrr, oracle(rax.mrr_metric), atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["promotion", "auc", "ndcg"]), st.sampled_from(CONDITIONS))
def test_padding_changes_nothing(seed, rank, condition):
  rng = np.random.default_rng(seed)
  options = RankRewardOptions(rank=rank, condition=condition)
  k, padded = 4, 6
  order, shown, upstream = (rng.permutation(k) for _ in range(3))
  labels = rng.integers(0, 3, k)

  def pad(x, fill):
    return jnp.asarray(np.concatenate([x, np.full(padded - k, fill)])[None])

  # Padding slots hold -1 in one order and padding candidates in another; padding candidates even carry labels.
  narrow = api.rank_terms(*(jnp.asarray(x[None]) for x in (order, labels, shown, upstream)), options=options)
  wide = api.rank_terms(
    pad(order, -1), pad(labels, 2), jnp.asarray(np.concatenate([[4, 5], shown])[None]), pad(upstream, -1),
    pad(np.ones(k, bool), False), options=options,
  )  # fmt: skip
  for name, a, b in zip(narrow._fields, narrow, wide, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


def test_kendall_tau_agrees_with_scipy():
  from scipy.stats import kendalltau

  rng = np.random.default_rng(0)
  a, b = (rng.permuted(np.tile(np.arange(6), (8, 1)), axis=1) for _ in range(2))
  terms = api.rank_terms(a, np.ones_like(a), b, options=DEFAULT)
  expected = [kendalltau(np.argsort(x), np.argsort(y)).statistic for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(terms.tau_to_shown, expected, atol=1e-6)


def test_groups_share_their_slate():
  rng = np.random.default_rng(1)
  rankings = rng.permuted(np.tile(np.arange(5), (3, 4, 1)), axis=2)
  labels, shown = rng.integers(0, 3, (3, 5)), rng.permuted(np.tile(np.arange(5), (3, 1)), axis=1)
  grouped = api.rank_terms(rankings, labels, shown, options=DEFAULT)
  flat = api.rank_terms(rankings.reshape(12, 5), labels.repeat(4, 0), shown.repeat(4, 0), options=DEFAULT)
  for a, b in zip(grouped, flat, strict=True):
    np.testing.assert_array_equal(np.reshape(a, np.shape(b)), b)
  assert grouped.recall.shape == (3, 4, 3)


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="labels: shape"):
    api.rank_terms(jnp.zeros((2, 3), int), jnp.zeros((2, 4), int), options=DEFAULT)
  with pytest.raises(ValueError, match="condition: 'eq8' is none of"):
    RankRewardOptions(condition="eq8")
