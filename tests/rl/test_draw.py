"""The endless stream of slates: each as by hand, shuffled anew in every epoch, of one shape, and continued exactly."""

import json

import jax
import numpy as np
import pytest

from gr2_jax.language.prompts import present, render_prompt
from gr2_jax.rl.draw import SlateStream, draw_indices
from gr2_jax.training.mesh import make_mesh


@pytest.fixture
def make_stream(slates, context, style):
  def make(**changes):
    return SlateStream(slates, context, style, **{"prompts": 3, "presentation": "shuffled", "seed": 5} | changes)

  return make


def same(one, two):
  for name in ("indices", "shown", "labels", "weights"):
    jax.tree.map(np.testing.assert_array_equal, getattr(one, name), getattr(two, name))
  for name in ("tokens", "mask", "references"):
    np.testing.assert_array_equal(getattr(one.prompts, name), getattr(two.prompts, name))


@pytest.mark.parametrize("presentation", ["upstream", "shuffled"])
def test_what_is_drawn_is_what_one_renders_by_hand(make_stream, slates, context, style, presentation):
  stream, places = make_stream(presentation=presentation), draw_indices(len(slates), 3, 5)
  for _ in range(4):
    drawn, place = next(stream), next(places)
    np.testing.assert_array_equal(drawn.indices, place["slate"])
    for row, (index, draw) in enumerate(zip(place["slate"], place["draw"], strict=True)):
      slate = slates[index]
      shown = present(len(slate.candidates), presentation, (5, int(index), int(draw)))
      assert drawn.slates[row] is slate
      np.testing.assert_array_equal(drawn.shown[row], shown)
      tokens = render_prompt(slate, shown, context, style).tokens
      mask = drawn.prompts.mask[row]
      assert drawn.prompts.tokens[row][mask > 0].tolist() == list(tokens) and mask.sum() == len(tokens)
      size = len(slate.candidates)
      assert drawn.labels[row].tolist() == [*slate.labels, *[-1] * (4 - size)]
      assert drawn.presented[row, :size].tolist() == shown.tolist() and sorted(drawn.presented[row]) == [0, 1, 2, 3]
      assert drawn.weights[row] == 1.0 + index


def test_an_epoch_holds_every_slate_once_and_no_two_are_alike(make_stream):
  stream = make_stream()
  epochs = [[next(stream) for _ in range(2)] for _ in range(3)]
  orders = [np.concatenate([drawn.indices for drawn in epoch]).tolist() for epoch in epochs]
  assert all(sorted(order) == list(range(6)) for order in orders) and len(set(map(tuple, orders))) == 3
  shown = [{int(i): tuple(order) for drawn in epoch for i, order in zip(drawn.indices, drawn.shown, strict=True)} for epoch in epochs]
  assert shown[0] != shown[1] != shown[2], "a slate is shown in another order each time"


def test_all_batches_have_one_shape(make_stream):
  stream, shapes = make_stream(), set()
  for _ in range(6):
    drawn = next(stream)
    shapes.add((drawn.prompts.tokens.shape, drawn.prompts.references.shape, drawn.presented.shape))
  assert len(shapes) == 1


def test_a_stream_goes_on_exactly_where_its_state_was_saved(make_stream):
  stream = make_stream()
  for _ in range(3):
    next(stream)
  state = json.loads(json.dumps(stream.get_state()))
  expected = [next(stream) for _ in range(4)]
  resumed = make_stream()
  next(resumed)
  resumed.set_state(state)
  for drawn in expected:
    same(next(resumed), drawn)


def test_seeds_decide_what_is_drawn(make_stream):
  one, again, other = make_stream(), make_stream(), make_stream(seed=6)
  same(next(one), next(again))
  assert any(next(one).indices.tolist() != next(other).indices.tolist() for _ in range(4))


def test_what_a_rollout_reads_lies_on_the_mesh(make_stream):
  drawn = next(make_stream(prompts=4))
  asked = drawn.to_mesh(make_mesh(2, 2, 2))
  for found, expected in zip(
    asked, (drawn.prompts.tokens, drawn.prompts.mask, drawn.prompts.references, drawn.presented, drawn.labels), strict=True
  ):
    np.testing.assert_array_equal(found, expected)
    assert len(found.sharding.device_set) == 8
