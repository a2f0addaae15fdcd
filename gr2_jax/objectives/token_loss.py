"""Per-token log-probabilities, entropy and reverse KL without a `[B, T, V]` array, and the weighted token cross-entropy."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.objectives.distillation import reverse_kl

_MOST_TOKENS, _MOST_LOGITS = 1024, 2**25  # at a time: 219 tokens at a vocabulary of 152,960, whose logits take 128 MiB


def token_log_probs(
  logits_fn: Callable[..., jax.Array],
  hidden: jax.Array,
  targets: jax.Array,
  *extra: Any,
  chunk: int | None = None,
  temperature: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target and entropy of each distribution, both float32 of `targets`' shape.

  `hidden [..., D]`, `targets [...]`; `logits_fn` maps `[n, D]` to `[n, V]`, and with `extra` (pytrees of arrays `[..., *]`, one row a
  token) `(hidden, *extra)`, say to put tokens out of reach. Logits exist for `chunk` tokens at a time (default: 1,024, fewer where the
  vocabulary is large) and are computed again in the backward pass, so that peak memory does not grow with tokens x vocabulary.
  """

  def terms(logits: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _log_prob_and_entropy(_log_softmax(logits / temperature), t)

  log_probs, entropies = _over_tokens(terms, logits_fn, (hidden, *extra), (targets,), targets.shape, chunk)
  return log_probs, entropies


def distillation_terms(
  logits_fn: Callable[..., jax.Array],
  teacher_logits_fn: Callable[..., jax.Array],
  hidden: jax.Array,
  teacher_hidden: jax.Array,
  targets: jax.Array,
  *extra: Any,
  chunk: int | None = None,
  temperature: float | jax.Array = 1.0,
  kl_fn: Callable[[jax.Array, jax.Array], jax.Array] = reverse_kl,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What `token_log_probs` gives, and the reverse KL[student || teacher] in nats of each token, by default over the whole vocabulary.

  `hidden [..., D]` and `teacher_hidden [..., D_T]` of the same tokens, on one vocabulary; `temperature` and `extra` go to both. The
  teacher gets no gradient. `kl_fn` maps the log-probabilities `[n, V]` of both to `[n]`. Chunked like `token_log_probs`, with the logits
  of both at once. Source: GR2 Eq 4; a sampled estimate of the KL, differentiated on the student's samples, would have the gradient of
  another divergence.
  """

  def terms(logits: jax.Array, t: jax.Array, *teacher_inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    log_p = _log_softmax(logits / temperature)
    teacher_log_p = _log_softmax(jax.lax.stop_gradient(teacher_logits_fn(*teacher_inputs)) / temperature)
    return *_log_prob_and_entropy(log_p, t), kl_fn(log_p, teacher_log_p)

  others = (targets, teacher_hidden, *extra)
  log_probs, entropies, divergences = _over_tokens(terms, logits_fn, (hidden, *extra), others, targets.shape, chunk)
  return log_probs, entropies, divergences


def _over_tokens(
  terms: Callable[..., tuple[jax.Array, ...]],
  logits_fn: Callable[..., jax.Array],
  inputs: tuple[Any, ...],
  others: tuple[Any, ...],
  shape: tuple[int, ...],
  chunk: int | None,
) -> tuple[jax.Array, ...]:
  """`terms(logits_fn(*inputs), *others)` of every token, a chunk at a time; all arrays are of `shape` with what follows a token's axes."""
  count = math.prod(shape)
  inputs, others = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(shape) :]), (inputs, others))
  if chunk is None:
    vocabulary_size = jax.eval_shape(logits_fn, *inputs).shape[-1]
    chunk = max(min(_MOST_TOKENS, _MOST_LOGITS // vocabulary_size), 1)
  chunks = -(-count // chunk)
  size = -(-count // chunks)

  def cut(x: jax.Array) -> jax.Array:  # [count, ...] -> [chunks, size, ...]
    return jnp.pad(x, [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])

  @jax.checkpoint
  def one(args: tuple[Any, Any]) -> tuple[jax.Array, ...]:
    inputs, others = args
    return terms(logits_fn(*inputs), *others)

  found = jax.lax.map(one, jax.tree.map(cut, (inputs, others)))
  return tuple(x.reshape(-1)[:count].reshape(shape) for x in found)


def _log_softmax(logits: jax.Array) -> jax.Array:
  # Not jax.nn.log_softmax, whose chunks take XLA's CPU backend a third more time, forward and backward.
  return logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _log_prob_and_entropy(log_p: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0], -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def parts_cross_entropy(
  log_probs: jax.Array, parts: jax.Array, weights_of_parts: Sequence[float], token_weights: jax.Array | None = None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
  """Sum over parts of weight x mean negative log-likelihood of that part's tokens (GR2 Eq 3, each part normalised by itself).

  `parts` holds 0 where nothing is learnt and p where a token belongs to part p; `weights_of_parts[p-1]` is its weight
  (reasoning λ_r, answer λ_o). Without own normalisation the ratio of the two would depend on the length of the reasoning.
  `token_weights`, of the shape of `parts` or one that broadcasts to it (`[B, 1]`: one a row), multiply a token's term in the sum and in the
  number: a token of weight 2 is one given twice. Returns the loss and each part's (sum of negative log-likelihoods, number of tokens).
  """
  loss, terms = jnp.zeros(()), []
  for part, weight in enumerate(weights_of_parts, start=1):
    mask = (parts == part).astype(jnp.float32)
    if token_weights is not None:
      mask = mask * token_weights
    total, count = -jnp.sum(log_probs * mask), jnp.sum(mask)
    # Tokens that weigh less than 1 in all still have their mean.
    loss += weight * total / (jnp.maximum(count, 1.0) if token_weights is None else jnp.where(count > 0, count, 1.0))
    terms.append((total, count))
  return loss, terms
