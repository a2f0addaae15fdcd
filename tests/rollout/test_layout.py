"""Rows that hold several completions: every fed token has one place, and what is computed there comes back to its completion."""

import jax
import numpy as np

from gr2_jax.rollout.layout import pack, row_for_each


def _lay_plainly(lengths, rows, width):
  """First-fit decreasing by hand: (row, column) of each completion, or None where one does not fit."""
  free, found = [width] * rows, {}
  for g in sorted(range(len(lengths)), key=lambda g: -lengths[g]):
    row = next((r for r in range(rows) if free[r] >= lengths[g]), None)
    if row is None:
      return None
    found[g] = row, width - free[row]
    free[row] -= lengths[g]
  return found


def test_every_token_that_is_fed_has_one_place():
  random, group, length = np.random.default_rng(0), 5, 7
  lay, outcomes = jax.jit(pack, static_argnums=1), set()
  for rows in (2, 3, 5):
    for _ in range(20):
      lengths = random.integers(0, length + 1, (2, group))
      layout, fits = jax.device_get(lay(np.arange(length) < lengths[..., None], rows))
      fed = np.maximum(lengths - 1, 0)
      plain = [_lay_plainly(sizes, rows, length - 1) for sizes in fed]
      outcomes.add(bool(fits))
      assert fits == all(plain)
      for p in range(2) if fits else ():
        expected = np.full((rows, length - 1), -1)
        for g, (row, column) in plain[p].items():
          expected[row, column : column + fed[p, g]] = g * length + np.arange(fed[p, g])
          np.testing.assert_array_equal(layout.place[p, g, : fed[p, g]], row * (length - 1) + column + np.arange(fed[p, g]))
        np.testing.assert_array_equal(layout.source[p], expected)
  assert outcomes == {False, True}


def test_what_the_rows_hold_and_predict():
  # Completions of 3, 1 and 2 tokens; the last of each is predicted and not fed, so one row of 2 and one of 1 hold them all.
  mask = np.array([[[1, 1, 1], [1, 0, 0], [1, 1, 0]]])
  tokens = np.array([[[10, 11, 12], [20, 0, 0], [30, 31, 0]]])
  layout, fits = pack(mask, 2)
  assert fits and layout.fed(tokens)[0, :3].tolist() == [10, 11, 30]
  np.testing.assert_array_equal(layout.segments(mask), [[1, 1, 3, 0]])
  np.testing.assert_array_equal(layout.times(3)[0, :3], [0, 1, 0])
  assert layout.predicted(tokens)[0, :6].tolist() == [10, 20, 30, 11, 12, 31]
  np.testing.assert_array_equal(np.where(mask, layout.unpack(layout.predicted(tokens), tokens.shape), 0), tokens)


def test_a_row_for_each_completion_is_the_completions_themselves():
  random = np.random.default_rng(1)
  mask, tokens = np.arange(5) < random.integers(1, 6, (2, 3, 1)), random.integers(0, 9, (2, 3, 5))
  layout = row_for_each(mask)
  np.testing.assert_array_equal(layout.fed(tokens), tokens[:, :, :-1].reshape(2, -1))
  np.testing.assert_array_equal(layout.times(5), np.tile(np.arange(4), (2, 3)))
  np.testing.assert_array_equal(layout.unpack(layout.predicted(tokens), tokens.shape), tokens)
