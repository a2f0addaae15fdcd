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

  def lay(free, size):
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
