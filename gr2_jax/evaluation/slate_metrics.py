"""What rankings make of slates besides finding what was taken: variety, price, exposure, and quality by a market's own truth."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gr2_jax.data.attributes import SlateAttributes
from gr2_jax.evaluation.held_out import make_order_reward
from gr2_jax.rewards.own import Slates
from gr2_jax.rewards.slate import SlateRewardConfig, compute_slate_terms, make_slate_reward

SLATE_METRICS = ("brands@3", "price@3", "small_brands@1", "true_recall@1", "true_ndcg@3", "slate_reward")
_TOP = 3
_TRUE: Mapping[str, int] = {"true_recall@1": 1, "true_ndcg@3": _TOP}


class Truth(NamedTuple):
  """What a market knows of n slates: the probability of each candidate to be taken, and the mean gain of its labels, `[n, K]` each."""

  choice: np.ndarray
  gains: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SlateView:
  """n slates as whole slates are judged: `labels [n, K]` (-1 at padding), attributes, a market's truth or None, and the reward."""

  labels: np.ndarray
  attributes: SlateAttributes
  truth: Truth | None
  config: SlateRewardConfig

  def measure(self, rankings: np.ndarray) -> dict[str, np.ndarray]:
    """SLATE_METRICS of each slate, float64 `[n]`, from rankings `[n, K]` (-1 where invalid; such an answer has 0 in all).

    `brands@3`: the share of distinct brands among the first three. `price@3`: their mean log price, the slate's taken off.
    `small_brands@1`: whether a small brand stands first. Of a market's truth, which knows how likely each candidate is taken,
    `true_recall@1` and `true_ndcg@3`: the means of R@1 and N@3 over the choice of which the label is one draw. `slate_reward`: what the
    reward pays, of the truth's gains where there is any, else of labels; absent where no first places earn.
    """
    real = self.labels >= 0
    listed = jnp.asarray(np.where(np.arange(real.shape[1]) < real.sum(axis=1, keepdims=True), rankings, -1))[:, None]
    terms = compute_slate_terms(_TOP, listed, self._slates())
    found = {"brands@3": terms.brands, "price@3": terms.price, "small_brands@1": terms.small}
    if self.truth is not None:
      chosen = self._slates()._replace(gains=jnp.asarray(self.truth.choice))
      found |= {name: compute_slate_terms(top, listed, chosen).dcg for name, top in _TRUE.items()}
    metrics = {name: np.asarray(of, np.float64)[:, 0] for name, of in found.items()}
    if self.config.top is not None:
      metrics["slate_reward"] = self.reward(rankings)
    return metrics

  def reward(self, rankings: np.ndarray) -> np.ndarray:
    """What the reward pays for rankings `[n, K]`, float64 `[n]`."""
    return self._judge(rankings).astype(np.float64)

  @functools.cached_property
  def _judge(self) -> Callable[[np.ndarray], np.ndarray]:
    return make_order_reward(make_slate_reward(self.config), self._arrays())  # compiled once for all rankings

  def _arrays(self) -> dict[str, Any]:
    gains = 2.0 ** np.maximum(self.labels, 0) - 1 if self.truth is None else self.truth.gains
    gains = np.where(self.labels >= 0, gains, -1).astype(np.float32)
    return {"labels": self.labels, "gains": gains, **self.attributes._asdict()}

  def _slates(self) -> Slates:
    real = self.labels >= 0
    return Slates(shown=jnp.broadcast_to(jnp.arange(real.shape[1]), real.shape), mask=jnp.asarray(real), **self._arrays())
