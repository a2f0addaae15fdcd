"""The legacy upstream ranker: a pointwise click model over sparse item ids, which reads no text and no order.

score(history, item) = mean of the history's embeddings · item embedding + item bias: the pooled-id form that production rankers started
from (Covington et al., RecSys 2016, section 3). Trained on every next purchase of the log against uniform negatives with the logistic
loss, one example at a time, so it learns "liked or not" and never compares the items of a slate.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gr2_jax.data.schema import DataError
from gr2_jax.data.slates import pad_histories
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.epoch import scan_epoch
from gr2_jax.training.guard import check_finite

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CtrConfig:
  """Size and training of the click model. Raises ValueError."""

  width: int = setting(64, "width of the embeddings", low=1)
  negatives: int = setting(8, "items drawn against each purchase", unit="items", low=1)
  epochs: int = setting(20, "passes over all purchases", unit="epochs", low=1)
  learning_rate: float = setting(3e-3, "learning rate of Adam", above=0)
  batch: int = setting(1024, "purchases of an update", unit="purchases", low=1)
  max_history: int = setting(20, "latest items of a history that are pooled", unit="items", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


def fit_ctr(
  histories: Sequence[np.ndarray],
  num_items: int,
  config: CtrConfig,
  seed: int,
  on_progress: Callable[[int, float], None] | None = None,
) -> Params:
  """Fits on every purchase after the first of each history (catalogue rows, oldest first); deterministic in `seed`.

  Returns `history [N, D]`, `item [N, D]` and `bias [N]`. `on_progress(epoch, loss)` is called after each epoch, epochs counted from 1.
  Raises DataError when no history has two items, and DivergedError when the loss of an epoch is no number.
  """
  arrays = [np.asarray(rows) for rows in histories]
  pairs = [(rows[max(0, t - config.max_history) : t], rows[t]) for rows in arrays for t in range(1, len(rows))]
  if not pairs:
    raise DataError("interactions: no history has two items, so there is no purchase to predict; give a longer log")
  past = jnp.asarray(pad_histories([rows for rows, _ in pairs], config.max_history))
  target = jnp.asarray([row for _, row in pairs], jnp.int32)
  init_key, key = jax.random.split(jax.random.key(seed))
  params = _init_params(init_key, num_items, config.width)
  opt_state = optax.adam(config.learning_rate).init(params)
  for epoch in range(config.epochs):
    params, opt_state, loss = run_epoch(params, opt_state, past, target, jax.random.fold_in(key, epoch), config)
    check_finite(float(loss), f"in epoch {epoch + 1} of the click model", "slates.ctr.learning_rate")
    if on_progress is not None:
      on_progress(epoch + 1, float(loss))
  return params


@jax.jit
def ctr_scores(params: Params, rows: jax.Array) -> jax.Array:
  """Logits of every item, float32 `[B, N]`, for histories `rows [B, H]` (catalogue rows, -1 = padding)."""
  return _pool(params["history"], rows) @ params["item"].T + params["bias"]


def _init_params(key: jax.Array, num_items: int, width: int) -> Params:
  history_key, item_key = jax.random.split(key)
  return {
    # Small: rare items keep most of their start, which must not outweigh what the bias has learned.
    "history": jax.random.normal(history_key, (num_items, width)) * 0.01,
    "item": jax.random.normal(item_key, (num_items, width)) * 0.01,
    "bias": jnp.zeros((num_items,)),
  }


def _pool(table: jax.Array, rows: jax.Array) -> jax.Array:
  """Mean embedding `[B, D]` over the real entries of `rows [B, H]`; zeros for an empty history."""
  real = (rows >= 0).astype(table.dtype)
  total = jnp.einsum("bh,bhd->bd", real, table[jnp.maximum(rows, 0)])
  return total / jnp.maximum(real.sum(axis=1, keepdims=True), 1)


def _loss(params: Params, past: jax.Array, items: jax.Array) -> jax.Array:
  """Logistic loss per purchase; `items [B, 1 + negatives]` holds the target first."""
  pooled = _pool(params["history"], past)
  logits = jnp.einsum("bd,bnd->bn", pooled, params["item"][items]) + params["bias"][items]
  labels = jnp.zeros_like(logits).at[:, 0].set(1)
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=1).mean()


@partial(jax.jit, static_argnames="config", donate_argnums=(0, 1))
def run_epoch(
  params: Params, opt_state: optax.OptState, past: jax.Array, target: jax.Array, key: jax.Array, config: CtrConfig
) -> tuple[Params, optax.OptState, jax.Array]:
  """A pass over the purchases `past [E, H]`, `target [E]` in a fresh order (a last part batch waits for another order); mean loss last."""
  order_key, negative_key = jax.random.split(key)

  def loss_of(params: Params, chosen: jax.Array, key: jax.Array) -> jax.Array:
    sampled = jax.random.randint(key, (len(chosen), config.negatives), 0, len(params["bias"]))
    return _loss(params, past[chosen], jnp.concatenate([target[chosen][:, None], sampled], axis=1))

  batch, optimizer = min(config.batch, len(target)), optax.adam(config.learning_rate)
  return scan_epoch(loss_of, optimizer, params, opt_state, count=len(target), batch=batch, order_key=order_key, step_key=negative_key)
