"""Neural rankers on evidence alone, without a language model: how far facts and labels carry with a listwise loss.

`prm`: the Personalised Re-ranking Model (Pei et al., RecSys 2019) on facts: each candidate's facts, with an embedding of its upstream rank,
pass through self-attention over the slate. `listwise_mlp`: the same facts of one candidate through two hidden layers, so that candidates
meet in the loss alone. Both read facts as piecewise-linear codes and learn the labels by a softmax over the slate.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gr2_jax.models.scorer import piecewise_linear
from gr2_jax.numerics import filled_batches
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.settings import check_settings, setting
from gr2_jax.training.epoch import scan_epoch
from gr2_jax.training.guard import check_finite

Params = Any
Kind = Literal["prm", "listwise_mlp"]
_SCORED = 1024  # slates at a time


@dataclasses.dataclass(frozen=True)
class ListwiseConfig:
  """Form and training of the neural rankers on evidence alone. Raises ValueError."""

  width: int = setting(64, "width of hidden layers and of attention", low=2)
  layers: int = setting(2, "hidden layers, or layers of attention", low=1)
  heads: int = setting(2, "heads of attention, which share the width", low=1)
  dropout: float = setting(0.2, "share of hidden values that is left out in training", low=0, below=1)
  learning_rate: float = setting(5e-4, "learning rate of AdamW", above=0)
  weight_decay: float = setting(0.05, "weight decay of AdamW", low=0)
  batch: int = setting(64, "slates of an update", unit="slates", low=1)
  epochs: int = setting(40, "passes over the training slates, at most", low=1)
  patience: int = setting(6, "passes that may bring nothing on the validation slates before training stops", unit="epochs", low=1)

  def __post_init__(self) -> None:
    check_settings(self)
    if self.width % self.heads:
      raise ValueError(f"heads: {self.heads} cannot share a width of {self.width}; choose a number that divides it")


class ListwiseRanker(nn.Module):
  """Scores `[B, K]` of facts `[B, K, F]` whose candidates are `real [B, K]`; those of the padding mean nothing.

  `edges [F, B + 1]` as in `FactCodes`; `longest`: candidates of the longest slate that it will read.
  """

  kind: Kind
  config: ListwiseConfig
  longest: int

  @nn.compact
  def __call__(self, facts: jax.Array, real: jax.Array, edges: jax.Array, *, deterministic: bool = True) -> jax.Array:
    config = self.config
    codes = piecewise_linear(facts, edges)
    x = nn.Dense(config.width)(codes.reshape(*codes.shape[:2], -1))
    if self.kind == "prm":
      ranks = self.param("ranks", nn.initializers.normal(0.02), (self.longest, config.width))
      x = nn.Dropout(config.dropout)(x + ranks[: x.shape[1]], deterministic=deterministic)
      for _ in range(config.layers):
        x = self._attend(x, real, deterministic)
    else:
      for layer in range(config.layers):
        x = x if layer == 0 else nn.Dense(config.width)(x)
        x = nn.Dropout(config.dropout)(nn.relu(x), deterministic=deterministic)
    return nn.Dense(1)(x)[..., 0]

  def _attend(self, x: jax.Array, real: jax.Array, deterministic: bool) -> jax.Array:
    """A layer of an encoder (Vaswani et al. 2017), normalised behind each part as there."""
    drop = nn.Dropout(self.config.dropout, deterministic=deterministic)
    x = nn.LayerNorm()(x + drop(nn.MultiHeadDotProductAttention(self.config.heads)(x, mask=real[:, None, None, :])))
    inner = nn.relu(nn.Dense(4 * self.config.width)(x))
    return nn.LayerNorm()(x + drop(nn.Dense(self.config.width)(inner)))


@dataclasses.dataclass(frozen=True, eq=False)
class FittedRanker:
  """A listwise ranker with the parameters of its best `epoch`, counted from 1."""

  model: ListwiseRanker
  params: Params
  edges: np.ndarray
  epoch: int

  def scores(self, facts: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Scores `[n, K]` of facts `[n, K, F]` whose candidates are `real [n, K]`."""
    size = min(_SCORED, len(facts))
    found = [_score(self.model, self.params, facts[part], real[part], self.edges) for part in filled_batches(len(facts), size)]
    return np.concatenate([np.asarray(of_part) for of_part in found])[: len(facts)]


def fit_listwise(
  kind: Kind,
  config: ListwiseConfig,
  facts: np.ndarray,
  labels: np.ndarray,
  weights: np.ndarray,
  edges: np.ndarray,
  quality: Callable[[FittedRanker], float],
  *,
  longest: int,
  seed: int,
  key: str,
  on_epoch: Callable[[int, float], None] = lambda done, loss: None,
) -> FittedRanker:
  """Fits on `facts [n, K, F]`, `labels [n, K]` (-1 at padding) and the `weights [n]` of slates; deterministic in `seed`.

  `quality(ranker)` of held-out slates, higher is better, chooses the epoch and stops the training. `longest`: as of `ListwiseRanker`.
  `on_epoch(done, loss)` is called after each epoch. Raises DivergedError, which names the config section `key`, when the loss of an epoch
  is no number.
  """
  model = ListwiseRanker(kind, config, longest)
  init_key, base = jax.random.split(jax.random.key(seed))
  data = tuple(jnp.asarray(x) for x in (facts, labels, weights, edges))
  params = model.init(init_key, data[0][:1], data[1][:1] >= 0, data[3])["params"]
  opt_state = _optimizer(config).init(params)
  best, found = -np.inf, FittedRanker(model, params, edges, 0)
  for epoch in range(1, config.epochs + 1):
    params, opt_state, loss = _run_epoch(model, params, opt_state, data, jax.random.fold_in(base, epoch))
    check_finite(float(loss), f"in epoch {epoch} of {kind}", f"{key}.learning_rate")
    on_epoch(epoch, float(loss))
    ranker = FittedRanker(model, params, edges, epoch)
    if (now := quality(ranker)) > best:
      best, found = now, ranker
    if epoch - found.epoch >= config.patience:
      break
  return found


def _optimizer(config: ListwiseConfig) -> optax.GradientTransformation:
  return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


@partial(jax.jit, static_argnames="model")
def _score(model: ListwiseRanker, params: Params, facts: jax.Array, real: jax.Array, edges: jax.Array) -> jax.Array:
  return model.apply({"params": params}, facts, real, edges)


@partial(jax.jit, static_argnames="model")
def _run_epoch(
  model: ListwiseRanker, params: Params, opt_state: optax.OptState, data: tuple[jax.Array, ...], key: jax.Array
) -> tuple[Params, optax.OptState, jax.Array]:
  """A pass over the slates in a fresh order (a last part batch waits for another order); the mean loss last."""
  facts, labels, weights, edges = data

  def loss_of(params: Params, chosen: jax.Array, key: jax.Array) -> jax.Array:
    real = labels[chosen] >= 0
    scores = model.apply({"params": params}, facts[chosen], real, edges, deterministic=False, rngs={"dropout": key})
    losses, learnt = listwise_cross_entropy(scores, labels[chosen], real)
    counted = weights[chosen] * learnt
    return jnp.sum(losses * counted) / jnp.maximum(counted.sum(), 1e-9)

  sizes = {"count": len(facts), "batch": min(model.config.batch, len(facts))}
  return scan_epoch(loss_of, _optimizer(model.config), params, opt_state, **sizes, order_key=key, step_key=key)
