"""The loss of mid-training on packed items, and how well they retrieve."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.packed_items import ItemRows, ItemTable, PackedItems
from gr2_jax.training.metric import Metric


def make_next_item_loss(model: PackedItems, *, negatives: int, code_weight: float) -> Callable[..., tuple[jax.Array, dict[str, Metric]]]:
  """Builds `loss(params, batch, table, *, key, deterministic=False)`: the dense head's nll + `code_weight` x the nll of the semantic ID.

  batch: `ItemRows` of histories. `negatives`: items drawn alike from the catalogue, with repeats,
  against which a next item is told (eSASRec, arXiv 2508.06450). `key` draws them and what is left out.
  Metrics: `loss`, `nll_dense`, `nll_codes`.
  """

  def loss_fn(
    params: Any, batch: ItemRows, table: ItemTable, *, key: jax.Array, deterministic: bool = False
  ) -> tuple[jax.Array, dict[str, Metric]]:
    drawing, dropping = jax.random.split(key)
    rows = jax.random.randint(drawing, (negatives,), 0, model.num_items)
    dense, codes, real = model.apply(
      {"params": params}, batch, table, rows, deterministic=deterministic, rngs={"dropout": dropping}, method="losses"
    )
    count = jnp.sum(real)
    terms = {name: Metric(jnp.sum(jnp.where(real, nll, 0.0)), count) for name, nll in (("nll_dense", dense), ("nll_codes", codes))}
    means = {name: term.sum / jnp.maximum(count, 1) for name, term in terms.items()}
    loss = means["nll_dense"] + code_weight * means["nll_codes"]
    return loss, terms | {"loss": Metric(loss, jnp.ones(()))}

  return loss_fn


def make_next_item_ndcg(model: PackedItems, *, cutoff: int = 10) -> Callable[[Any, ItemRows, ItemTable], Metric]:
  """Builds `ndcg(params, batch, table)`: NDCG@`cutoff` of the next items of histories among all items of the catalogue."""

  def ndcg(params: Any, batch: ItemRows, table: ItemTable) -> Metric:
    ranks, real = model.apply({"params": params}, batch, table, method="next_item_ranks")
    gains = jnp.where(real & (ranks < cutoff), 1 / jnp.log2(ranks + 2.0), 0.0)
    return Metric(jnp.sum(gains), jnp.sum(real))

  return ndcg
