"""A reward of the first places of an answer: what they are worth by labels, and what the slate that they make is worth besides.

Labels say what single candidates are worth. How varied, how dear and how fair to small brands an answer is no label of a candidate says.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.rewards.own import Answers, RewardFn, Rewards, Slates
from gr2_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True)
class SlateRewardConfig:
  """The sum of a DCG, which is linear in its labels' gains, and of weighed terms. Raises ValueError."""

  top: int | None = setting(
    None,
    "first places of an answer, which earn their DCG and the terms below in place of the section `reward`; None: that section holds",
    unit="places",
    low=1,
  )
  diversity: float = setting(0.0, "weight of the share of distinct brands among these places", low=0)
  price: float = setting(0.0, "weight of the mean log price of these places, the slate's taken off; below 0 for cheap ones")
  small_brands: float = setting(0.0, "weight of a small brand at the first place", low=0)
  small_share: float = setting(0.25, "share of the brands, those with the fewest purchases in the log, that are small", low=0, high=1)

  def __post_init__(self) -> None:
    check_settings(self)
    for name in ("diversity", "price", "small_brands"):
      if self.top is None and getattr(self, name):
        raise ValueError(f"{name}: {getattr(self, name)} is of the first places, and top names none; set top to 3, or this to 0")

  @property
  def pays_besides(self) -> bool:
    """Whether it pays for more than labels."""
    return bool(self.diversity or self.price or self.small_brands)


class SlateTerms(NamedTuple):
  """The terms of answers before they are weighed, `[P, G]` each."""

  dcg: jax.Array
  brands: jax.Array
  price: jax.Array
  small: jax.Array


def compute_slate_terms(top: int, rankings: jax.Array, slates: Slates) -> SlateTerms:
  """Of full rankings `[P, G, K]`, -1 behind a shorter slate's; `slates` with their `gains` and attributes.

  A brand that is unknown is no other's. A slate shorter than `top` has as many places as candidates.
  """
  first = rankings[..., :top]
  listed = first >= 0
  places = jnp.maximum(listed.sum(axis=-1), 1)

  def at_places(of: jax.Array, padding: float) -> jax.Array:
    taken = jnp.take_along_axis(jnp.broadcast_to(of[:, None], (*rankings.shape[:-1], of.shape[-1])), jnp.maximum(first, 0), axis=-1)
    return jnp.where(listed, taken, padding)

  assert slates.gains is not None and slates.brands is not None and slates.prices is not None and slates.small is not None
  discount = 1 / jnp.log2(2.0 + jnp.arange(first.shape[-1]))
  brands = at_places(slates.brands, -1)
  before = jnp.tril(jnp.ones((first.shape[-1],) * 2, bool), -1)
  repeated = jnp.any((brands[..., :, None] == brands[..., None, :]) & (brands[..., :, None] >= 0) & before, axis=-1)
  return SlateTerms(
    dcg=jnp.sum(at_places(jnp.maximum(slates.gains, 0), 0.0) * discount, axis=-1),
    brands=jnp.sum(listed & ~repeated, axis=-1) / places,
    price=jnp.sum(at_places(slates.prices, 0.0), axis=-1) / places,
    small=at_places(slates.small.astype(jnp.float32), 0.0)[..., 0],
  )


def make_slate_reward(config: SlateRewardConfig) -> RewardFn:
  """The reward of a config whose `top` is set; runs on the device."""
  top = config.top
  assert top is not None

  def slate_reward(answers: Answers, slates: Slates) -> Rewards:
    terms = compute_slate_terms(top, answers.rankings, slates)
    earned = terms.dcg + config.diversity * terms.brands + config.price * terms.price + config.small_brands * terms.small
    return Rewards(earned, earned)

  return slate_reward
