"""The strong upstream ranker: SASRec with the items' text, a causal transformer over a history that is trained with a sampled softmax.

score(history, item) = state after the history's last item · item vector (Kang & McAuley, ICDM 2018), where an item vector is an embedding
plus a projection of the item's text, the same for what is read and what is asked for. A next item is told from uniform negatives that all
positions of an update share (Klenitskiy & Vasilev, RecSys 2023). The network is that of packed items, without semantic IDs; it is trained
here alone and knows nothing of mid-training.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError
from gr2_jax.models.config import preset
from gr2_jax.models.packed_items import ItemRows, ItemTable, PackedItems, last_states, one_a_row
from gr2_jax.models.transformer import init_params
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.epoch import scan_epoch
from gr2_jax.training.guard import check_finite
from gr2_jax.training.state import OptimizerConfig, make_optimizer


@dataclasses.dataclass(frozen=True)
class SasrecConfig:
  """Size and training of SASRec. Raises ValueError."""

  width: int = setting(64, "width of the item vectors", low=1)
  layers: int = setting(2, "layers of the transformer", low=1)
  dropout: float = setting(0.1, "share of what is read, and of the states, that is left out in training", low=0, below=1)
  negatives: int = setting(1024, "items drawn against the next ones, for each update", unit="items", low=1)
  epochs: int = setting(16, "passes over all histories", unit="epochs", low=1)
  learning_rate: float = setting(1e-2, "learning rate of Muon at first; it falls to 0 as a cosine", above=0)
  weight_decay: float = setting(0.05, "weight decay of all parameters but the scales of norms", low=0)
  batch: int = setting(2048, "items of an update", unit="items", low=1)
  max_history: int = setting(50, "latest items of a history that are read", unit="items", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


class SasrecParams(NamedTuple):
  """What training leaves: parameters of the `network`, and the vectors of all `items [N, D]`."""

  network: Any
  items: jax.Array


def fit_sasrec(
  histories: Sequence[np.ndarray],
  vectors: np.ndarray,
  config: SasrecConfig,
  seed: int,
  on_progress: Callable[[int, float], None] | None = None,
) -> SasrecParams:
  """Fits on every item after the first of each history (catalogue rows, oldest first); deterministic in `seed`.

  `vectors [N, T]`: of the items' text, of length 1. `on_progress(epoch, loss)` is called after each epoch, epochs counted from 1.
  Raises DataError when no history has two items, and DivergedError when the loss of an epoch is no number.
  """
  rows = _pack(histories, config.max_history + 1)
  model = make_network(config, *vectors.shape)
  table = ItemTable(jnp.zeros((len(vectors), 0), jnp.int32), jnp.asarray(vectors))
  init_key, key = jax.random.split(jax.random.key(seed))
  params = init_params(model, init_key)
  opt_state = make_rule(config, rows).init(params)
  for epoch in range(config.epochs):
    params, opt_state, loss = run_epoch(params, opt_state, rows, table, jax.random.fold_in(key, epoch), config)
    check_finite(float(loss), f"in epoch {epoch + 1} of SASRec", "slates.sasrec.learning_rate")
    if on_progress is not None:
      on_progress(epoch + 1, float(loss))
  return SasrecParams(params, model.apply({"params": params}, table, method="item_vectors"))


@partial(jax.jit, static_argnames="config")
def sasrec_scores(params: SasrecParams, rows: jax.Array, config: SasrecConfig) -> jax.Array:
  """Logits of every item, float32 `[B, N]`, for histories `rows [B, H]` (catalogue rows, -1 behind them)."""
  model = make_network(config, len(params.items), len(params.network["text"]))
  states = model.apply({"params": params.network}, one_a_row(rows), params.items, method="states")
  return (last_states(states, rows) @ params.items.T).astype(jnp.float32)


def make_network(config: SasrecConfig, num_items: int, text_dim: int) -> PackedItems:
  """The network, for items with text vectors of `text_dim`."""
  network = dataclasses.replace(preset("micro", 1), num_layers=config.layers, width=config.width, mlp_width=3 * config.width)
  return PackedItems(network, num_items=num_items, levels=0, codebook_size=1, text_dim=text_dim, dropout=config.dropout)


def make_rule(config: SasrecConfig, rows: ItemRows) -> optax.GradientTransformation:
  """How a gradient on a batch of packed `rows` becomes an update."""
  rule = OptimizerConfig(config.learning_rate, rule="muon", schedule="cosine", weight_decay=config.weight_decay)
  return make_optimizer(rule, config.epochs * (len(rows.items) // _rows_of_batch(config, rows)))


def _rows_of_batch(config: SasrecConfig, rows: ItemRows) -> int:
  total, length = rows.items.shape
  return min(max(config.batch // length, 1), total)


def _pack(histories: Sequence[np.ndarray], length: int) -> ItemRows:
  """Histories behind each other in rows `[R, length]`; a longer one in parts, the last of them whole, that share an item at each cut."""
  parts = [rows[max(0, end - length) : end] for rows in map(np.asarray, histories) for end in range(len(rows), 1, 1 - length)]
  if not parts:
    raise DataError("interactions: no history has two items, so there is no next item to predict; give a longer log")
  packed = list(
    make_pipeline(parts, seed=0, batch_size=1, map_fn=lambda part, rng: {"tokens": part}, pack_length=length, shuffle=False, repeat=False)
  )
  return ItemRows(*(jnp.asarray(np.concatenate([row[name] for row in packed])) for name in ("tokens", "positions", "segment_ids")))


@partial(jax.jit, static_argnames="config", donate_argnums=(0, 1))
def run_epoch(
  params: Any, opt_state: optax.OptState, rows: ItemRows, table: ItemTable, key: jax.Array, config: SasrecConfig
) -> tuple[Any, optax.OptState, jax.Array]:
  """A pass over `rows [R, T]` in a fresh order (a last part batch waits for another order); mean loss last."""
  model = make_network(config, *table.text.shape)
  order_key, step_key = jax.random.split(key)

  def loss_of(params: Any, chosen: jax.Array, key: jax.Array) -> jax.Array:
    drawing, dropping = jax.random.split(key)
    negatives = jax.random.randint(drawing, (config.negatives,), 0, model.num_items)
    of_batch, rngs = ItemRows(*(of[chosen] for of in rows)), {"dropout": dropping}
    nll, _, real = model.apply({"params": params}, of_batch, table, negatives, deterministic=False, rngs=rngs, method="losses")
    return jnp.sum(jnp.where(real, nll, 0.0)) / jnp.sum(real)

  sizes = {"count": len(rows.items), "batch": _rows_of_batch(config, rows)}
  return scan_epoch(loss_of, make_rule(config, rows), params, opt_state, **sizes, order_key=order_key, step_key=step_key)
