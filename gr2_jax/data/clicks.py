"""Clicks and conversions on a market's slates as a log would hold them: of what was examined, which depends on the upstream position.

A candidate of utility u, the slate's mean taken off, attracts with sigmoid(u - 2.5), is bought once clicked with sigmoid(u / 2 - 1), and is
clicked where it attracts and is examined: the position-based model (Joachims et al. 2017), of candidates that know nothing of each other.
A session may have no click. The market's own graded labels are of sessions with at least one, which no weighing makes unbiased.
"""

import numpy as np

from gr2_jax.data.market import attraction, examination


def draw_clicks(utilities: np.ndarray, decay: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Labels `[n, K]` (0 none, 1 click, 2 conversion) and propensities `[n, K]`, of true utilities `[n, K]` in the upstream order.

  `decay`: position s is examined with probability (s + 1) ** -decay; at 0 everything is.
  """
  clicked, bought = _probabilities(utilities)
  examined = np.broadcast_to(examination(utilities.shape[1], decay), utilities.shape)
  clicks = rng.random(utilities.shape) < clicked * examined
  return (clicks * (1 + (rng.random(utilities.shape) < bought))).astype(np.int32), examined


def expected_gains(utilities: np.ndarray) -> np.ndarray:
  """The mean gain 2^label - 1 `[n, K]` of candidates that are all examined."""
  clicked, bought = _probabilities(utilities)
  return clicked * (1 + 2 * bought)


def _probabilities(utilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of a click where it is examined, and of a conversion where it is clicked."""
  relative = utilities.astype(np.float64) - utilities.mean(axis=1, keepdims=True)
  return attraction(relative), 1 / (1 + np.exp(1.0 - 0.5 * relative))
