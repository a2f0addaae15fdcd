"""Signs that a ranking is the order that was shown, or a habit of positions, rather than a judgement of the items."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.evaluation.weights import check_weights, weighted_mean
from gr2_jax.kernels.rank_reward import api
from gr2_jax.kernels.rank_reward.api import RankRewardOptions
from gr2_jax.language.answers import ERROR_KINDS, NOT_FINITE
from gr2_jax.numerics import filled_batches

_ROWS = 4096


@jax.jit
def _copies_of_block(rankings: jax.Array, shown: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
  terms = api.rank_terms(rankings, mask.astype(jnp.int32), shown, mask=mask, options=RankRewardOptions(cutoffs=(1,)))
  return {
    "valid": terms.valid,
    "identity": jnp.maximum(terms.identity_to_shown, terms.identity_to_upstream),
    "identity_to_shown": terms.identity_to_shown,
    "identity_to_upstream": terms.identity_to_upstream,
    "near_identity": jnp.maximum(terms.near_identity_to_shown, terms.near_identity_to_upstream),
    "tau_to_shown": terms.tau_to_shown,
    "tau_to_upstream": terms.tau_to_upstream,
  }


def _compare(rankings: np.ndarray, shown: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
  """How each ranking `[n, K]` stands to the order it was shown and to the upstream order; each `[n]`."""
  rows = min(len(rankings), max((1 << 24) // rankings.shape[1] ** 2, 1), _ROWS)
  blocks = []
  for chosen in filled_batches(len(rankings), rows):
    blocks.append(jax.device_get(_copies_of_block(*(jnp.asarray(x[chosen]) for x in (rankings, shown, mask)))))
  return {name: np.concatenate([b[name] for b in blocks])[: len(rankings)] for name in blocks[0]}


def _mean(values: np.ndarray, where: np.ndarray, weights: np.ndarray) -> float | None:
  return float(weighted_mean(values[where], weights[where])) if where.any() else None


def compute_diagnostics(
  rankings: np.ndarray,
  labels: np.ndarray,
  shown: np.ndarray | None = None,
  errors: Sequence[str | None] | None = None,
  weights: np.ndarray | None = None,
) -> dict[str, Any]:
  """Diagnostics of n answers, JSON-able; None where no answer is valid.

  rankings `[n, K]` (-1 where invalid), labels `[n, K]` (-1 at padding, otherwise unused), shown `[n, K]` (default: upstream
  order), errors: the parser's kind for each answer or None, weights `[n]`: how much each slate counts (default: alike). All but
  `valid_rate` and `errors` are over valid answers.
  `identity_rate`: the shown or the upstream order exactly; `near_identity_rate`: either, up to one swap of two candidates
  (copies included). `top1_share_by_slot [K]`: share of answers whose first choice was shown at that slot.
  """
  rankings, mask = np.asarray(rankings), np.asarray(labels) >= 0
  shown = np.broadcast_to(np.arange(rankings.shape[1]), rankings.shape) if shown is None else np.asarray(shown)
  weights = check_weights(weights, len(rankings))
  of = _compare(rankings, shown, mask)
  valid = of["valid"] > 0
  slots = weighted_mean(shown[valid] == rankings[valid, :1], weights[valid]).tolist() if valid.any() else None
  diagnostics = {
    "valid_rate": float(weighted_mean(valid, weights)),
    "identity_rate": _mean(of["identity"], valid, weights),
    "identity_to_shown_rate": _mean(of["identity_to_shown"], valid, weights),
    "identity_to_upstream_rate": _mean(of["identity_to_upstream"], valid, weights),
    "near_identity_rate": _mean(of["near_identity"], valid, weights),
    "kendall_tau_to_shown": _mean(of["tau_to_shown"], valid, weights),
    "kendall_tau_to_upstream": _mean(of["tau_to_upstream"], valid, weights),
    "top1_share_by_slot": slots,
  }
  if errors is not None:
    kinds = (*ERROR_KINDS, NOT_FINITE)
    diagnostics["errors"] = {kind: float(weighted_mean(np.array([error == kind for error in errors]), weights)) for kind in kinds}
  return diagnostics


def permutation_consistency(first: np.ndarray, second: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float | None:
  """Mean Kendall tau between the rankings `[n, K]` of the same slates under two presentations; weights `[n]` as above.

  1: the answer depends on the items alone. Only slates with two valid answers count; None where there are none.
  """
  mask = np.asarray(labels) >= 0
  natural = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
  both = np.ones(len(mask), bool)
  for rankings in (first, second):
    both &= _compare(np.asarray(rankings), natural, mask)["valid"] > 0
  return _mean(_compare(np.asarray(first), np.asarray(second), mask)["tau_to_shown"], both, check_weights(weights, len(mask)))
