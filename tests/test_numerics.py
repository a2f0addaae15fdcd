"""Batches hold all rows in order, each of one size."""

from gr2_jax.numerics import filled_batches


def test_behind_the_last_row_come_the_first_again():
  assert [rows.tolist() for rows in filled_batches(5, 2)] == [[0, 1], [2, 3], [4, 0]]
  assert [rows.tolist() for rows in filled_batches(2, 5)] == [[0, 1, 0, 1, 0]]
  assert not list(filled_batches(0, 3))
