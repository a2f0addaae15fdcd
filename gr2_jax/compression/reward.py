"""What a rewritten history earns: shorter and still as good for the ranking (GR2 Eq 10 and 11)."""

from typing import NamedTuple

import numpy as np

ELLIPSIS_BASE, ELLIPSIS_FLOOR = 0.5, 0.1  # the report leaves the form of its penalty open


class CompressionTerms(NamedTuple):
  """The parts of the reward, each of the inputs' shape: `shorter` r_comp, `judged` r_judge, `whole` λ_ellipsis, and `total` r."""

  shorter: np.ndarray
  judged: np.ndarray
  whole: np.ndarray
  total: np.ndarray


def compression_reward(compressed: np.ndarray, original: np.ndarray) -> np.ndarray:
  """r_comp = max(0, 1 - |compressed| / |original|), lengths in tokens; 0 where there was nothing to compress."""
  compressed, original = np.asarray(compressed, np.float64), np.asarray(original, np.float64)
  return np.where(original > 0, np.maximum(0.0, 1.0 - compressed / np.maximum(original, 1.0)), 0.0)


def judge_reward(solvable: np.ndarray, preservation: np.ndarray, quality: np.ndarray) -> np.ndarray:
  """Eq 10 with p̄ and q̄ in [0, 1]: 0.2 p̄ + 0.8 q̄ where the slate can still be solved, else 0.8 p̄ + 0.2 q̄."""
  preservation, quality = np.asarray(preservation, np.float64), np.asarray(quality, np.float64)
  return np.where(solvable, 0.2 * preservation + 0.8 * quality, 0.8 * preservation + 0.2 * quality)


def ellipsis_factor(count: np.ndarray) -> np.ndarray:
  """λ_ellipsis = 0.5^count, at least 0.1: what is cut off in the middle was not compressed."""
  return np.maximum(ELLIPSIS_BASE ** np.asarray(count, np.float64), ELLIPSIS_FLOOR)


def compression_terms(
  *,
  compressed: np.ndarray,
  original: np.ndarray,
  solvable: np.ndarray,
  preservation: np.ndarray,
  quality: np.ndarray,
  ellipses: np.ndarray,
  valid: np.ndarray,
  alpha: float,
) -> CompressionTerms:
  """Eq 11: r = (α r_comp + (1 - α) r_judge) λ_ellipsis, and 0 where the text is not `valid` (a semantic ID not copied exactly).

  All arrays of one shape, such as `[P, G]`; α in [0, 1] weighs length against quality.
  """
  shorter, judged = compression_reward(compressed, original), judge_reward(solvable, preservation, quality)
  whole = ellipsis_factor(ellipses)
  total = np.where(valid, (alpha * shorter + (1 - alpha) * judged) * whole, 0.0)
  return CompressionTerms(shorter, judged, whole, total)


def alpha_at(step: int, steps: int, alphas: tuple[float, float]) -> float:
  """α at `step` of `steps`, linearly from the first to the last: quality has to be learnt before length pays."""
  first, last = alphas
  return first + (last - first) * min(step / max(steps - 1, 1), 1.0)
