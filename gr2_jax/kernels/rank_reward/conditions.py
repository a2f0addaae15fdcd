"""The conditions under which a ranking reward is paid: one record each, and the only place that lists them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Rewards that differ by less are equal: two float32 sums of the same terms in another order differ by about 1e-7.
EQUAL = 1e-6


class Earned(NamedTuple):
  """What a condition decides by; arrays that broadcast with each other, and `best` may be a number."""

  earned: jax.Array  # R, the ranking reward of the answer
  upstream_earned: jax.Array  # R_u, that of the upstream order
  best: jax.Array | float  # what the best order would earn
  copied: jax.Array  # the answer is the shown or the upstream order
  improved: jax.Array  # R > R_u
  kept_best: jax.Array  # the upstream order cannot be improved, and was not spoilt


class Paid(NamedTuple):
  """What a condition makes of it: `raw` filters groups, `paid` is optimised, plus alpha where `credit`."""

  raw: jax.Array
  paid: jax.Array
  credit: jax.Array | bool


@dataclasses.dataclass(frozen=True)
class Condition:
  """A rule, its defaults, and what it is for.

  `alpha`: weight of the format term; `invalid`: reward of an answer that is no full permutation. `rule` is pure jnp on any shape, of
  operations that the kernel's lowerings know too (elementwise ones and `where`).
  """

  name: str
  alpha: float
  invalid: float
  rule: Callable[[Earned], Paid]
  doc: str


def _naive(e: Earned) -> Paid:
  return Paid(e.earned, e.earned, True)


def _v1(e: Earned) -> Paid:
  return Paid(e.earned, e.earned, (e.earned > EQUAL) | e.kept_best)


def _eq7(e: Earned) -> Paid:
  return Paid(e.earned, jnp.where(e.copied & (e.earned < e.best - EQUAL), 0.0, e.earned), True)


def _relative(e: Earned) -> Paid:
  gained = e.earned - e.upstream_earned
  return Paid(gained, gained, e.improved | e.kept_best)


def _improving(e: Earned) -> Paid:
  earned = jnp.where(e.improved | e.kept_best, e.earned, 0.0)
  return Paid(earned, earned, True)


# Eq 7 gives an invalid answer no rank credit. Where rewards fall below 0, as v1's promotion and the relative reward do, 0 would
# make giving no answer better than a bad one, so v1's -1 stands.
_RECORDS = (
  Condition("naive", 0.2, -1.0, _naive, "R + alpha: the sum of both terms, which pays for copying"),
  Condition("v1", 0.2, -1.0, _v1, "R, and alpha only where R > 0, or where the upstream order is best and was kept so (v1's rule)"),
  Condition(
    "eq7", 0.1, 0.0, _eq7, "R + alpha, but a copy of the shown or of the upstream order that is not best earns alpha alone (GR2 Eq 7)"
  ),
  Condition(
    "relative", 0.1, -1.0, _relative, "R - R_u, and alpha where that is > 0, or where the upstream order is best and was kept so (ours)"
  ),
  Condition(
    "improving",
    0.1,
    0.0,
    _improving,
    "alpha, and R only where R > R_u, or where the upstream order is best and was kept so: Eq 7's rule for copies, held against every "
    "answer that is no better than a copy (ours)",
  ),
)
CONDITIONS: Mapping[str, Condition] = {condition.name: condition for condition in _RECORDS}


def find_condition(name: str) -> Condition:
  """The record of a name; raises ValueError, which lists the names, for one that has none."""
  if name not in CONDITIONS:
    raise ValueError(f"condition: {name!r} is none of {', '.join(CONDITIONS)}")
  return CONDITIONS[name]
