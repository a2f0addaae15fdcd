"""Mid-training's model of packed items: a history as one position an item, and what is taken next by a dense head and by semantic IDs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.transformer import Decoder, table_param


class ItemTable(NamedTuple):
  """What is known of each item, by catalogue row: semantic IDs `codes [N, L]` and text vectors of length 1, `text [N, D]`."""

  codes: Any
  text: Any


class ItemRows(NamedTuple):
  """Histories behind each other in rows `[B, T]`: catalogue rows `items`, `positions` in a history, and `segment_ids`.

  Histories of a row are numbered 1, 2.. by `segment_ids`; 0 is padding, whose item means nothing.
  """

  items: Any
  positions: Any
  segment_ids: Any


def one_a_row(histories: Any) -> ItemRows:
  """Rows of one history each, of `histories [B, H]` with -1 behind them."""
  positions = jnp.broadcast_to(jnp.arange(histories.shape[1]), histories.shape)
  return ItemRows(jnp.maximum(histories, 0), positions, (histories >= 0).astype(jnp.int32))


def last_states(states: jax.Array, histories: jax.Array) -> jax.Array:
  """Of states `[B, H, D]` those after the last items of `histories [B, H]`, `[B, D]`."""
  lengths = jnp.sum(histories >= 0, axis=1)
  return jnp.take_along_axis(states, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]


class PackedItems(nn.Module):
  """A causal decoder over items, each the sum of its semantic ID's codes, its projected text vector and an embedding of its own.

  The dense head scores an item by the product of a position's state and the item's own vector, so that what is read is what is asked for;
  a small decoder over the state writes the semantic ID, code after code. `dropout` leaves out that share of what is read and of the states.
  With `levels` 0 items have no semantic IDs, and the dense head is all.
  """

  config: ModelConfig
  num_items: int
  levels: int
  codebook_size: int
  text_dim: int
  dropout: float = 0.0

  def setup(self) -> None:
    self.items = table_param(self, "items", 0.02, self.num_items)
    self.codes = table_param(self, "codes", 0.05, self.levels, self.codebook_size)
    self.text = table_param(self, "text", 0.1 * self.text_dim**-0.5, self.text_dim)
    width = self.config.width
    writer = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), (None, "embed", None))
    self.writer = self.param("writer", writer, (self.levels, width, width))
    self.decoder = Decoder(self.config)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, histories: jax.Array, table: ItemTable) -> tuple[jax.Array, jax.Array]:
    """(states `[B, H, D]` after each item of `histories [B, H]`, catalogue rows with -1 behind them; item vectors `[N, D]`)."""
    vectors = self.item_vectors(table)
    return self.states(one_a_row(histories), vectors), vectors

  def item_vectors(self, table: ItemTable) -> jax.Array:
    """Of all items, `[N, D]`."""
    vectors = self.items + table.text @ self.text * self.text_dim**0.5
    for level in range(self.levels):
      vectors += self.codes[level][table.codes[:, level]]
    return vectors

  def states(self, rows: ItemRows, vectors: jax.Array, *, deterministic: bool = True) -> jax.Array:
    """After each item of rows, `[B, T, D]`; `vectors [N, D]` of the items."""
    read = self.drop(vectors[rows.items], deterministic=deterministic)
    memory = jnp.broadcast_to(-1 - jnp.arange(rows.items.shape[1]), rows.items.shape)
    states, _ = self.decoder(memory, rows.positions, rows.segment_ids, memory=read)
    return self.drop(states, deterministic=deterministic)

  def code_log_probs(self, states: jax.Array, codes: jax.Array) -> jax.Array:
    """Log-probability `[..., L]` of each code of `codes [..., L]` after the ones before it, written from `states [..., D]`."""
    found = []
    for level in range(self.levels):
      log_probs = jax.nn.log_softmax(self._code_logits(states, level), axis=-1)
      found.append(jnp.take_along_axis(log_probs, codes[..., level, None], axis=-1)[..., 0])
      states = states + self.codes[level][codes[..., level]]
    return jnp.stack(found, axis=-1) if found else jnp.zeros((*states.shape[:-1], 0))

  def next_code_logits(self, states: jax.Array, codes: jax.Array) -> jax.Array:
    """Logits `[..., C]` of the code that follows `codes [..., fewer than L]`, written from `states [..., D]`, which broadcast."""
    for level in range(codes.shape[-1]):
      states = states + self.codes[level][codes[..., level]]
    return self._code_logits(states, codes.shape[-1])

  def _code_logits(self, states: jax.Array, level: int) -> jax.Array:
    return (nn.silu(states @ self.writer[level]) @ self.codes[level].T).astype(jnp.float32)

  def losses(
    self, rows: ItemRows, table: ItemTable, negatives: jax.Array, *, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nats `[B, T - 1]` of the next item of rows `[B, T]` by the dense head and by its codes, and where the same history has one.

    The dense head tells the next item from `negatives [M]`, catalogue rows drawn alike for all; where one is the next item it counts once.
    """
    vectors = self.item_vectors(table)
    states, following, followed = self._look_ahead(rows, vectors, deterministic)
    target = jnp.sum(states * vectors[following], axis=-1).astype(jnp.float32)
    others = (states @ vectors[negatives].T).astype(jnp.float32)
    others = jnp.where(following[..., None] == negatives, -jnp.inf, others)
    dense = jnp.logaddexp(target, jax.nn.logsumexp(others, axis=-1)) - target
    return dense, -self.code_log_probs(states, table.codes[following]).sum(axis=-1), followed

  def next_item_ranks(self, rows: ItemRows, table: ItemTable) -> tuple[jax.Array, jax.Array]:
    """Ranks `[B, T - 1]`, 0 = first, of the next items of rows `[B, T]` among all items by the dense head, and where there is one."""
    vectors = self.item_vectors(table)
    states, following, followed = self._look_ahead(rows, vectors, True)
    scores = (states @ vectors.T).astype(jnp.float32)
    own = jnp.take_along_axis(scores, following[..., None], axis=-1)
    return jnp.sum(scores >= own, axis=-1) - 1, followed

  def _look_ahead(self, rows: ItemRows, vectors: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The states `[B, T - 1, D]` of rows `[B, T]`, the items that follow, and where these are of the same history."""
    read = ItemRows(*(of[:, :-1] for of in rows))
    followed = (rows.segment_ids[:, 1:] == read.segment_ids) & (read.segment_ids > 0)
    return self.states(read, vectors, deterministic=deterministic), rows.items[:, 1:], followed

  def example(self) -> tuple[jax.Array, ItemTable]:
    """The smallest arguments, see `init_boxed`."""
    table = ItemTable(jnp.zeros((self.num_items, self.levels), jnp.int32), jnp.zeros((self.num_items, self.text_dim)))
    return jnp.zeros((1, 1), jnp.int32), table
