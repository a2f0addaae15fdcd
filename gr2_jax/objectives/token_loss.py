"""Per-token log-probabilities and entropy without a `[B, T, V]` array, and the weighted token cross-entropy."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def token_log_probs(
  logits_fn: Callable[..., jax.Array],
  hidden: jax.Array,
  targets: jax.Array,
  *extra: Any,
  chunk: int = 1024,
  temperature: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target and entropy of each distribution, both float32 of `targets`' shape.

  `hidden [..., D]`, `targets [...]`; `logits_fn` maps `[n, D]` to `[n, V]`, and with `extra` (pytrees of arrays `[..., *]`, one row a
  token) `(hidden, *extra)`, say to put tokens out of reach. Logits exist for `chunk` tokens at a time and
  are computed again in the backward pass, so that peak memory does not grow with tokens x vocabulary.
  """
  shape = targets.shape
  count = targets.size
  chunks = -(-count // chunk)
  size = -(-count // chunks)

  def cut(x):  # [..., *] -> [chunks, size, *]
    x = x.reshape(count, *x.shape[len(shape) :])
    return jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])

  @jax.checkpoint
  def one(args):
    h, t, e = args
    log_p = jax.nn.log_softmax(logits_fn(h, *e) / temperature, axis=-1)
    chosen = jnp.take_along_axis(log_p, t[:, None], axis=-1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

  log_probs, entropy = jax.lax.map(one, jax.tree.map(cut, (hidden, targets, extra)))
  return log_probs.reshape(-1)[:count].reshape(shape), entropy.reshape(-1)[:count].reshape(shape)


def parts_cross_entropy(
  log_probs: jax.Array, parts: jax.Array, weights: Sequence[float]
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
  """Sum over parts of weight x mean negative log-likelihood of that part's tokens (GR2 Eq 3, each part normalised by itself).

  `parts` holds 0 where nothing is learnt and p where a token belongs to part p; `weights[p-1]` is its weight (reasoning
  λ_r, answer λ_o). Without own normalisation the ratio of the two would depend on the length of the reasoning.
  Returns the loss and each part's (sum of negative log-likelihoods, number of tokens).
  """
  loss, terms = jnp.zeros(()), []
  for part, weight in enumerate(weights, start=1):
    mask = (parts == part).astype(jnp.float32)
    total, count = -jnp.sum(log_probs * mask), jnp.sum(mask)
    loss += weight * total / jnp.maximum(count, 1.0)
    terms.append((total, count))
  return loss, terms
