import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids.export import (
  assign_codes,
  check_distinct,
  describe_codes,
  draw_apart,
  export_table,
  prefix_purity,
  random_last_level,
)
from gr2_jax.semantic_ids.rqvae import Codebooks, RqVae, RqVaeConfig, make_autoencoder
from gr2_jax.semantic_ids.sizes import Inputs
from gr2_jax.semantic_ids.table import uniqueness

# Networks that hand their input through: one identity layer each way. Level 1 holds 0 and 10, level 2 holds -1 and 1.
CONFIG = RqVaeConfig(levels=2, codebook_size=2, latent=1, hidden=())


def identity_tokenizer():
  params = make_autoencoder(CONFIG, 1).init(jax.random.key(0), jnp.zeros((1, 1)))["params"]
  params = jax.tree.map(lambda x: jnp.ones_like(x) if x.ndim == 2 else jnp.zeros_like(x), params)
  return RqVae(params=params, codebooks=Codebooks(counts=jnp.full((2, 2), 1e4), sums=jnp.array([[[0.0], [1e5]], [[-1e4], [1e4]]])))


def test_nearest_codes_and_r2_by_hand_in_any_chunk_size():
  # 1 → 0 + 1, 9 → 10 - 1, both exact; 12 → 10 + 1, error 1. Mean 22/3, Σ(x - mean)² = 226 - 484/3 = 194/3; R² = 1 - 1 / (194/3).
  vectors = np.array([[1.0], [9.0], [12.0]], np.float32)
  for rows in (1, 2, 4096):
    codes, r2 = assign_codes(identity_tokenizer(), vectors, CONFIG, rows=rows)
    assert codes.tolist() == [[0, 1], [1, 0], [1, 1]]
    np.testing.assert_allclose(r2, 1 - 3 / 194, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60), st.integers(0, 2**31))
def test_drawn_without_replacement_ids_are_unique_while_buckets_fit(prefixes, seed):
  codes = np.array([(*p, 0) for p in prefixes], np.int32)
  size = max(max(prefixes.count(p) for p in prefixes), 4)
  drawn = random_last_level(codes, size, seed)
  np.testing.assert_array_equal(drawn[:, :2], codes[:, :2])
  assert drawn[:, 2].min() >= 0 and drawn[:, 2].max() < size
  assert uniqueness(drawn) == {"distinct_share": 1.0, "own_share": 1.0}
  np.testing.assert_array_equal(drawn, random_last_level(codes, size, seed))


def test_a_bucket_beyond_the_codebook_uses_every_value_evenly():
  drawn = random_last_level(np.zeros((10, 2), np.int32), 4, seed=0)
  assert sorted(np.bincount(drawn[:, 1], minlength=4).tolist()) == [2, 2, 3, 3]


def test_one_level_alone_is_drawn_over_the_whole_catalogue():
  assert sorted(random_last_level(np.zeros((8, 1), np.int32), 8, seed=1)[:, 0].tolist()) == list(range(8))


def test_independent_draws_collide_about_as_often_as_they_should():
  # 400 buckets of 8 items, C = 256: expected colliding pairs 400 * 28 / 256 = 43.75, standard deviation about 6.6.
  codes = np.stack([np.arange(400).repeat(8), np.zeros(3200, int)], axis=1)
  drawn = random_last_level(codes, 256, seed=0, replacement=True)
  pairs = sum(n * (n - 1) // 2 for n in np.unique(drawn, axis=0, return_counts=True)[1].tolist())
  assert 43.75 - 5 * 6.6 < pairs < 43.75 + 5 * 6.6


def test_the_last_level_is_uniform():
  drawn = random_last_level(np.stack([np.arange(8000), np.zeros(8000, int)], axis=1), 8, seed=0)[:, 1]
  # Buckets of one: each draw is uniform over 8, 1000 expected a value, standard deviation about 30.
  assert np.abs(np.bincount(drawn, minlength=8) - 1000).max() < 150


def test_description_by_hand():
  # Level 1: shares 3/4 and 1/4; perplexity exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4); C = 4 → usage 1/2, largest 3/4 * 4.
  # Prefixes: one of 3 items, one of 1; IDs: (0, 1) twice, (0, 2), (3, 3).
  report = describe_codes(np.array([[0, 1], [0, 1], [0, 2], [3, 3]]), 4)
  assert report["levels"][0] == {"used": 2, "usage": 0.5, "perplexity": pytest.approx(4 / 3**0.75), "largest_share": 3.0}
  assert (report["distinct_share"], report["own_share"], report["prefix_distinct_share"]) == (0.75, 0.5, 0.5)
  assert report["prefix_buckets"] == {"1": 1, "3": 1} and report["id_buckets"] == {"1": 2, "2": 1}


def test_purity_by_hand():
  # Prefix (0): labels a, a, b → 2 of 3; prefix (1): c → 1 of 1; together 3/4. Whole IDs: (0,0) a, (0,1) a b, (1,0) c → 3/4.
  codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0]])
  assert prefix_purity(codes, np.array([5, 5, 9, 7])) == [0.75, 0.75]
  assert prefix_purity(codes, np.array([1, 2, 2, 3])) == [0.75, 1.0]


def test_the_report_tells_before_from_after_and_is_json():
  vectors = np.array([[1.0], [1.1]], np.float32)  # both (0, 1): one ID for two items
  table, report = export_table(identity_tokenizer(), vectors, CONFIG, seed=0)
  assert sorted(table.codes.tolist()) == [[0, 0], [0, 1]]
  assert report["before"]["distinct_share"] == 0.5 and report["before"]["own_share"] == 0.0
  assert report["after"]["distinct_share"] == report["after"]["own_share"] == 1.0
  assert json.loads(json.dumps(report)) == report


def test_export_refuses_collisions_unless_told():
  vectors = np.array([[1.0], [1.1], [9.0]], np.float32)
  with pytest.raises(DataError, match=r"66\.67% of 3 items.* 3 different.*level=random, .*rqvae\.codebook_size, .*allow_collisions"):
    export_table(identity_tokenizer(), vectors, CONFIG, seed=0, last_level="nearest")
  table, report = export_table(identity_tokenizer(), vectors, CONFIG, seed=0, last_level="nearest", allow_collisions=True)
  assert table.items_of([0, 1]) == [0, 1] and report["after"] == report["before"]


def test_the_error_names_items_that_no_training_tells_apart():
  vectors = np.array([[1.0]] * 4 + [[9.0]], np.float32)
  with pytest.raises(DataError, match=r"2 different.* up to 4 items have the same.*\.last_level=random, or allow"):
    export_table(identity_tokenizer(), vectors, CONFIG, seed=0, last_level="nearest")
  with pytest.raises(DataError, match=r"8 items.* 1 different"):
    check_distinct(1 / 8, Inputs(8, 1, 8), "nearest")
  check_distinct(0.99, Inputs(100, 99, 2), "nearest")


def test_a_level_is_added_where_a_bucket_has_no_room_unless_collisions_are_allowed():
  vectors = np.array([[1.0]] * 5 + [[9.0]], np.float32)  # five items of the codes 0, 1; behind the 0 the last level tells two apart
  table, report = export_table(identity_tokenizer(), vectors, CONFIG, seed=0)
  assert table.num_levels == 4 and report["after"]["own_share"] == 1.0 and len(report["after"]["levels"]) == 4
  assert (report["before"]["distinct_share"], report["distinct_inputs"], report["largest_input"]) == (2 / 6, 2, 5)
  assert table.codes[:, 0].tolist() == [0] * 5 + [1]
  fixed, report = export_table(identity_tokenizer(), vectors, CONFIG, seed=0, allow_collisions=True)
  assert fixed.num_levels == 2 and report["after"]["distinct_share"] == 3 / 6
  np.testing.assert_array_equal(fixed.codes, table.codes[:, :2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(2, 4), st.integers(0, 2**31))
def test_no_more_levels_are_added_than_the_largest_bucket_needs(buckets, size, seed):
  codes = np.array([(bucket, 0) for bucket in buckets], np.int32)
  drawn = draw_apart(codes, size, seed)
  np.testing.assert_array_equal(drawn[:, :2], random_last_level(codes, size, seed))
  largest = max(map(buckets.count, buckets))
  assert uniqueness(drawn)["own_share"] == 1 and drawn.max() < max(size, 4)
  levels = drawn.shape[1] - 1
  assert size**levels >= largest and (levels == 1 or size ** (levels - 1) < largest)


def test_an_unknown_way_to_draw_is_refused():
  with pytest.raises(ValueError, match="last_level='best'"):
    export_table(identity_tokenizer(), np.ones((2, 1), np.float32), CONFIG, seed=0, last_level="best")
