"""Packing, order, shares of processes, and exact resume."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError


def plain(record, rng):
  """Example `record` is its own token repeated: the token says which record it was."""
  del rng
  index, size = record
  return {"tokens": [index] * size, "parts": list(range(1, size + 1))}


RECORDS = [(index + 1, size) for index, size in enumerate([3, 5, 2, 7, 1, 4, 6, 2, 3, 5, 8])]


def packed(**kwargs):
  settings = {"seed": 0, "batch_size": 2, "map_fn": plain, "pack_length": 10} | kwargs
  return make_pipeline(RECORDS, **settings)


def segments(batch):
  """The examples of a batch as (token, size), after checking that each is whole and its positions restart."""
  found = []
  for row in range(len(batch["tokens"])):
    ids = batch["segment_ids"][row]
    assert sorted(set(ids) - {0}) == list(range(1, ids.max() + 1))
    for segment in range(1, ids.max() + 1):
      (where,) = np.nonzero(ids == segment)
      tokens = batch["tokens"][row, where]
      assert len(set(tokens)) == 1
      np.testing.assert_array_equal(where, np.arange(where[0], where[0] + len(where)))
      np.testing.assert_array_equal(batch["positions"][row, where], np.arange(len(where)))
      np.testing.assert_array_equal(batch["parts"][row, where], np.arange(1, len(where) + 1))
      found.append((int(tokens[0]), len(where)))
  return found


def test_first_fit_by_hand():
  # Rows of 10 in the order 3 5 2 7 1: row one takes 3, 5 and 2 and is full, row two takes 7 and 1. The next, 4, fits neither.
  batch = next(packed(shuffle=False, pad_id=99))
  np.testing.assert_array_equal(batch["tokens"], [[1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [4, 4, 4, 4, 4, 4, 4, 5, 99, 99]])
  np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 2, 2, 2, 2, 2, 3, 3], [1] * 7 + [2, 0, 0]])
  np.testing.assert_array_equal(batch["positions"][1], [0, 1, 2, 3, 4, 5, 6, 0, 0, 0])
  assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(batch, np.dtype(np.int32))


def test_fields_keep_their_kind_through_packing():
  def weighted(record, rng):
    del rng
    index, size = record
    return {"tokens": [index] * size, "weights": [index + 0.25] * size, "half": np.full(size, 0.5, np.float16)}

  batch = next(packed(shuffle=False, pad_id=99, map_fn=weighted))
  np.testing.assert_array_equal(batch["weights"], [[1.25] * 3 + [2.25] * 5 + [3.25] * 2, [4.25] * 7 + [5.25, 0, 0]])
  np.testing.assert_array_equal(batch["half"][1], [0.5] * 8 + [0, 0])
  assert batch["tokens"][1, 8:].tolist() == [99, 99]
  kinds = {"tokens": np.int32, "weights": np.float32, "half": np.float32, "segment_ids": np.int32, "positions": np.int32}
  assert {name: value.dtype for name, value in batch.items()} == {name: np.dtype(kind) for name, kind in kinds.items()}


def test_every_example_once_an_epoch_and_every_epoch_another_order():
  iterator = packed()
  order = list(itertools.chain.from_iterable(segments(next(iterator)) for _ in range(40)))
  # First fit reorders inside a batch only, so whole epochs are compared as sets over a shifted window of unpacked records.
  unpacked = make_pipeline([{"tokens": np.array([i])} for i in range(11)], seed=0, batch_size=11, map_fn=lambda r, _: r)
  epochs = [next(unpacked)["tokens"][:, 0].tolist() for _ in range(3)]
  assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  counts = np.bincount([token for token, _ in order], minlength=12)[1:]
  assert counts.max() - counts.min() <= 2
  assert all((token, size) in RECORDS for token, size in order)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), taken=st.integers(0, 9), rows=st.integers(1, 3))
def test_resume_is_exact_at_any_batch(sizes, taken, rows):
  records = [(index + 1, size) for index, size in enumerate(sizes)]

  def start():
    return make_pipeline(records, seed=3, batch_size=rows, map_fn=plain, pack_length=6)

  straight = start()
  for _ in range(taken):
    next(straight)
  position = json.loads(json.dumps(straight.get_state()))
  resumed = start()
  resumed.set_state(position)
  for _ in range(4):
    expected, got = next(straight), next(resumed)
    for name in expected:
      np.testing.assert_array_equal(expected[name], got[name])


def noisy(record, rng):
  return {"tokens": np.array([record, rng.integers(1 << 30)])}


def test_randomness_follows_the_place_not_the_process_and_differs_by_epoch():
  whole = make_pipeline(range(4), seed=1, batch_size=4, map_fn=noisy)
  halves = [make_pipeline(range(4), seed=1, batch_size=4, map_fn=noisy, process_index=p, process_count=2) for p in (0, 1)]
  seen = []
  for _ in range(3):
    batch = next(whole)["tokens"]
    shares = [next(half)["tokens"] for half in halves]
    assert [len(share) for share in shares] == [2, 2]
    np.testing.assert_array_equal(np.stack(shares, axis=1).reshape(4, 2), batch)
    seen.append({int(record): int(noise) for record, noise in batch})
  assert all(seen[0][record] != seen[1][record] != seen[2][record] for record in range(4))


def test_one_pass_gives_processes_equal_shares_and_ends():
  # 11 records for 2 processes: 5 each, so 2 full batches of 2 rows each; the last record of each share is left out.
  shares = [
    list(
      make_pipeline(
        RECORDS,
        seed=0,
        batch_size=4,
        map_fn=lambda r, _: {"tokens": np.array(r)},
        repeat=False,
        shuffle=False,
        process_index=p,
        process_count=2,
      )
    )
    for p in (0, 1)
  ]
  assert [[b["tokens"][:, 0].tolist() for b in share] for share in shares] == [[[1, 3], [5, 7]], [[2, 4], [6, 8]]]


def test_processes_get_different_examples_of_a_packed_stream():
  tokens = [{t for t, _ in segments(next(packed(shuffle=False, batch_size=4, process_index=p, process_count=2)))} for p in (0, 1)]
  assert tokens[0] and tokens[1] and not tokens[0] & tokens[1]


def test_too_long_names_the_index_and_a_cut_must_be_asked_for():
  iterator = packed(pack_length=7, shuffle=False)
  with pytest.raises(DataError, match=r"example 10: 8 tokens do not fit a row of 7.*cut"):
    list(itertools.islice(iterator, 20))
  iterator = packed(pack_length=7, cut=True)
  sizes = dict(itertools.chain.from_iterable(segments(next(iterator)) for _ in range(20)))
  assert sizes[11] == 7


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"batch_size": 3, "process_count": 2}, "3 rows do not divide over 2 processes"),
    ({"batch_size": 4, "process_count": 2, "repeat": False}, "unequal numbers of batches"),
  ],
)
def test_settings_that_cannot_hold(kwargs, message):
  with pytest.raises(DataError, match=message):
    packed(**kwargs)


def test_bad_examples_name_their_index():
  def run(example):
    next(make_pipeline([0], seed=0, batch_size=1, map_fn=lambda *_: example, pack_length=4))

  with pytest.raises(DataError, match="example 0: no tokens"):
    run({"tokens": []})
  with pytest.raises(DataError, match="example 0: its fields differ in length"):
    run({"tokens": [1, 2], "parts": [1]})
  with pytest.raises(DataError, match="no examples"):
    make_pipeline([], seed=0, batch_size=1, map_fn=plain)
