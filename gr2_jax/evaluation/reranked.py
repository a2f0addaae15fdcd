"""The plain rival of a policy that was trained for whole slates: scores that were not, re-ranked greedily for the same reward."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.attributes import SlateAttributes
from gr2_jax.evaluation.slate_metrics import SlateView
from gr2_jax.numerics import OUT_OF_REACH
from gr2_jax.rewards.slate import SlateRewardConfig

RERANKED = "_reranked"  # behind a ranker's name
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of scores, whose softmax says how likely candidates are taken
SCALES = (0.5, 1.0, 2.0)  # of the terms' weights


def rerank_greedily(
  scores: np.ndarray,
  labels: np.ndarray,
  attributes: SlateAttributes,
  config: SlateRewardConfig,
  *,
  temperature: float = 1.0,
  scale: float = 1.0,
) -> np.ndarray:
  """Rankings `[n, K]` of candidates by scores `[n, K]`, with what the reward pays besides; labels `[n, K]` say but where padding is (-1).

  Place by place the candidate that adds most to the expected reward stands next, as in maximal marginal relevance (Carbonell and Goldstein
  1998): its probability under softmax(scores / temperature), discounted by the place, and `scale` x the terms. Behind the places that earn
  candidates stand by score.
  """
  assert config.top is not None
  real = labels >= 0
  logits = jnp.where(real, scores / temperature, OUT_OF_REACH)
  probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
  rows, size = np.arange(len(real)), real.shape[1]
  left = real.copy()
  order: list[np.ndarray] = []
  places = np.minimum(config.top, real.sum(axis=1))[:, None]
  for place in range(min(config.top, size)):
    seen = np.zeros_like(real)
    for earlier in order:
      brand = attributes.brands[rows, earlier][:, None]
      seen |= (attributes.brands == brand) & (brand >= 0)
    added = probabilities / np.log2(2 + place) + scale * (config.diversity * ~seen + config.price * attributes.prices) / places
    if place == 0:
      added = added + scale * config.small_brands * attributes.small
    best = np.where(left, added, -np.inf).argmax(axis=1)
    best = np.where(left.any(axis=1), best, real.sum(axis=1) + np.maximum(place - real.sum(axis=1), 0))  # a shorter slate's padding
    left[rows, best] = False
    order.append(best)
  taken = np.zeros_like(real)
  for best in order:
    taken[rows, best] = True
  behind = np.argsort(np.where(taken, 2.0, np.where(real, -probabilities, 1.0)), axis=1, kind="stable")[:, : size - len(order)]
  return np.concatenate([np.stack(order, axis=1), behind], axis=1)


def rerank_as_chosen(scores: tuple[np.ndarray, np.ndarray], held_out: SlateView, test: SlateView) -> tuple[np.ndarray, dict[str, float]]:
  """Rankings `[n, K]` of the test slates, with the temperature and scale of which the held-out slates' rankings earn most.

  `scores`: of the held-out and of the test slates.
  """

  def rerank(view: SlateView, of: np.ndarray, settings: dict[str, float]) -> np.ndarray:
    return rerank_greedily(of, view.labels, view.attributes, view.config, **settings)

  settings = [{"temperature": temperature, "scale": scale} for temperature, scale in itertools.product(TEMPERATURES, SCALES)]
  chosen = max(settings, key=lambda of: float(held_out.reward(rerank(held_out, scores[0], of)).mean()))
  return rerank(test, scores[1], chosen), chosen
