"""Completions of different lengths behind each other in rows, so that an update costs what its real tokens cost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
  """Where the tokens that are fed stand, of G completions of at most Lc tokens for each of P prompts: all but the last of each.

  `source [P, R, Lc - 1]`: the token at each place of the R rows, as g * Lc + t, or -1 where there is none.
  `place [P, G, Lc - 1]`: each token's place in its prompt's rows, as r * (Lc - 1) + c; means nothing behind a completion's end.
  """

  source: jax.Array
  place: jax.Array

  def fed(self, x: jax.Array, ahead: int = 0) -> jax.Array:
    """`x [P, G, Lc, ..]` at the places of the rows, or of the token that is `ahead` of each, `[P, R * (Lc - 1), ..]`."""
    num_prompts, group, length = x.shape[:3]
    source = self._flat()
    index = (jnp.maximum(source, 0) + ahead).reshape(*source.shape, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(x.reshape(num_prompts, group * length, *x.shape[3:]), index, axis=1)

  def predicted(self, x: jax.Array) -> jax.Array:
    """`x [P, G, Lc, ..]` of the first token of each completion, which the prompt predicts, then of what the rows predict."""
    return jnp.concatenate([x[:, :, 0], self.fed(x, ahead=1)], axis=1)

  def times(self, length: int) -> jax.Array:
    """How many tokens of its completion stand before each place, `[P, R * (Lc - 1)]`; Lc is `length`."""
    return self._flat() % length

  def segments(self, completion_mask: jax.Array) -> jax.Array:
    """Which completion each place belongs to, from 1 on, `[P, R * (Lc - 1)]`; 0 where there is no token."""
    source = self._flat()
    return jnp.where((source >= 0) & (self.fed(completion_mask) > 0), 1 + source // completion_mask.shape[2], 0)

  def unpack(self, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Values in the order of `predicted` as `[P, G, Lc]`, which is `shape`; what stands behind a completion's end means nothing."""
    num_prompts, group, _ = shape
    first = jnp.broadcast_to(jnp.arange(group)[:, None], (num_prompts, group, 1))
    # Behind a completion's end the place may be no place at all, hence the clip.
    place = jnp.concatenate([first, group + self.place], axis=-1).reshape(num_prompts, -1).clip(0, values.shape[1] - 1)
    return jnp.take_along_axis(values, place, axis=1).reshape(shape)

  def _flat(self) -> jax.Array:
    return self.source.reshape(len(self.source), -1)


def row_for_each(completion_mask: jax.Array) -> Layout:
  """The layout of `completion_mask [P, G, Lc]` without packing: R = G."""
  shape = completion_mask.shape
  group, length = shape[1:]
  tokens = jnp.arange(group)[:, None] * length + jnp.arange(length - 1)
  places = jnp.arange(group * (length - 1)).reshape(group, length - 1)
  return Layout(*(jnp.broadcast_to(x, (shape[0], *x.shape)) for x in (tokens, places)))


def pack(completion_mask: jax.Array, rows: int) -> tuple[Layout, jax.Array]:
  """The layout of `completion_mask [P, G, Lc]` in `rows` rows a prompt, and whether it holds all of them (a scalar).

  The longest completions are laid first, each in the first row with room for it (first-fit decreasing). Where they don't fit the
  layout means nothing. No compilation depends on the lengths.
  """
  num_prompts, group, length = completion_mask.shape
  width = length - 1
  fed = jnp.max(jnp.where(completion_mask > 0, jnp.arange(length), 0), axis=-1)
  order = jnp.argsort(-fed, axis=1)

  def lay(free: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    row = jnp.argmax(free >= size)
    return free.at[row].add(-size), row * width + width - free[row]

  free, starts = jax.vmap(lambda sizes: jax.lax.scan(lay, jnp.full(rows, width), sizes))(jnp.take_along_axis(fed, order, axis=1))
  starts = jnp.take_along_axis(starts, jnp.argsort(order, axis=1), axis=1)
  place = starts[..., None] + jnp.arange(width)
  written = jnp.where(jnp.arange(width) < fed[..., None], place, rows * width)
  tokens = jnp.arange(group)[:, None] * length + jnp.arange(width)
  source = jnp.full((num_prompts, rows * width), -1)
  source = jax.vmap(lambda row, at: row.at[at].set(tokens, mode="drop"))(source, written)
  return Layout(source.reshape(num_prompts, rows, width), place), jnp.all(free >= 0)
