import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids.table import SemanticIDTable, prefix_groups, uniqueness

CODES = np.array([[0, 1], [2, 0], [0, 1], [2, 1]], np.int32)


def test_both_definitions_of_uniqueness():
  # IDs (0,1) twice, (2,0), (2,1): 3 distinct of 4 items; 2 of 4 items have an ID of their own.
  assert uniqueness(CODES) == {"distinct_share": 0.75, "own_share": 0.5}
  assert SemanticIDTable(CODES, 3).uniqueness() == uniqueness(CODES)


def test_lookup_returns_every_item_of_a_collided_id():
  table = SemanticIDTable(CODES, 3)
  assert table.items_of([0, 1]) == [0, 2]
  assert table.items_of(np.array([2, 1])) == [3]
  assert table.items_of([1, 1]) == []
  assert (len(table), table.num_levels) == (4, 2)


def test_save_and_load_are_exact_and_the_bytes_are_repeatable(tmp_path):
  SemanticIDTable(CODES, 3).save(tmp_path / "a.npz")
  loaded = SemanticIDTable.load(tmp_path / "a.npz")
  np.testing.assert_array_equal(loaded.codes, CODES)
  assert loaded.codebook_size == 3 and loaded.codes.dtype == np.int32
  loaded.save(tmp_path / "b.npz")
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_file_that_is_no_table_is_an_error_that_names_it(tmp_path):
  (tmp_path / "broken.npz").write_bytes(b"PK nothing")
  np.savez(tmp_path / "other.npz", values=np.ones(3))
  np.save(tmp_path / "array.npz.npy", np.ones(3))
  for name in ("broken.npz", "other.npz", "absent.npz", "array.npz.npy"):
    with pytest.raises(DataError, match=name):
      SemanticIDTable.load(tmp_path / name)


def test_a_damaged_table_is_an_error_that_names_it(tmp_path):
  path = tmp_path / "sids.npz"
  SemanticIDTable(np.arange(3000).reshape(1000, 3) % 256, 256).save(path)
  whole = path.read_bytes()
  middle = len(whole) // 3
  for damaged in (b"", whole[: len(whole) // 2], whole[:-20], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]):
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"sids\.npz"):
      SemanticIDTable.load(path)


@pytest.mark.parametrize("codes", [[[0, 3]], [[-1, 0]], [0, 1], np.zeros((0, 2))])
def test_codes_outside_the_codebook_are_refused(codes):
  with pytest.raises(DataError, match="codes"):
    SemanticIDTable(np.asarray(codes), 3)


def test_a_table_cannot_be_changed():
  codes = CODES.copy()
  table = SemanticIDTable(codes, 3)
  codes[0, 0] = 2
  assert table.codes[0, 0] == 0
  with pytest.raises(ValueError, match="read-only"):
    table.codes[0, 0] = 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_prefix_groups_number_the_sorted_prefixes(ids):
  groups = prefix_groups(np.array(ids))
  for length in range(4):
    prefixes = [i[:length] for i in ids]
    assert groups[:, length].tolist() == [sorted(set(prefixes)).index(prefix) for prefix in prefixes]
