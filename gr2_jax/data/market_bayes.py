"""The best order of a synthetic market's slates for one who knows the market but not the user: the ceiling of every ranker.

A request shows three things of its user: the history, which candidates were drawn, and what the upstream ranker gave them. The posterior of
the hidden tastes given all three, and so the probability that a candidate is taken, comes by importance sampling, request by request:

    proposal      favourite brands by the posterior of each set of them at the likeliest other tastes; those tastes from a normal
                  distribution around that point, with the curvature there (Laplace's approximation)
    weight        prior x likelihood / proposal, all utilities by the generator's own functions
    probability   the weighted mean over the draws; to sort by it is the best order in expectation, by R@k and by NDCG

What is true of items is known. The choice itself, and whatever comes after the request, is not read.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from gr2_jax.data.market import (
  PAYS,
  SCENTS,
  MarketConfig,
  Shelf,
  candidate_logits,
  label_probabilities,
  sequence_part,
  upstream_means,
  value_items,
)
from gr2_jax.data.schema import Catalogue, Slate

DRAWS = 256
MOST_SETS = 5000  # of favourite brands, all of which are gone through
_NEWTON_STEPS = 3
_SLOPE = 0.2  # half the distance, in standard deviations, over which a slope is taken: prices make kinks
_SPREAD = 1.05  # wider than the curvature says, since weights forgive what is drawn in vain and not what is never drawn
_SET_POWER, _ANY_SET = 0.8, 0.05  # the same for sets: flatter, and some of all
_LEAST_NOISE = 0.01  # of the upstream scores, in logits, below which they would be equations
_NODES, _NODE_WEIGHTS = np.polynomial.laguerre.laggauss(40)


@dataclasses.dataclass(frozen=True)
class ChoicePosterior:
  """Of n slates: P(label above 0) of each candidate, `[n, K]`, and how many even draws the weighted ones are worth, `[n]`."""

  probabilities: np.ndarray
  effective: np.ndarray


def has_few_sets(config: MarketConfig) -> bool:
  """Whether users' favourite brands are among few enough sets for `choice_posterior`."""
  return math.comb(config.num_brands, config.favourite_brands) <= MOST_SETS


def choice_posterior(
  config: MarketConfig,
  shelf: Shelf,
  catalogue: Catalogue,
  slates: Sequence[Slate],
  *,
  seed: int,
  draws: int = DRAWS,
  on_progress: Callable[[int], None] = lambda done: None,
) -> ChoicePosterior:
  """Of a market's own slates, with all of their histories; deterministic in `seed`. `on_progress` hears how many slates are done."""
  sampler = _Sampler(config, shelf, draws, seed)

  def ask(slate: Slate) -> tuple[np.ndarray, float]:
    return sampler.ask(
      _Request.of(config, shelf, catalogue.to_rows(slate.history), catalogue.to_rows(slate.candidates), slate.upstream_scores)
    )

  found = []
  with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
    for of_slate in pool.map(ask, slates):
      found.append(of_slate)
      on_progress(len(found))
  probabilities, effective = zip(*found, strict=True)
  return ChoicePosterior(np.stack(probabilities), np.array(effective))


class _Request(NamedTuple):
  """What a request shows, and what follows from it for any user.

  `bought [T]` and `candidates [K]` (rows), `scores [K]`; `offer [T, N]`: what the purchases before do to the odds of each item at a
  purchase, 0 for what was bought; `reached [K]`: the utility that they give the candidates; `drawn [2, N]`: by which weights candidates
  were drawn, of a brand that is no favourite and of one that is; `left [N]`: true where an item might have been drawn and was not.
  """

  bought: np.ndarray
  candidates: np.ndarray
  scores: np.ndarray
  offer: np.ndarray
  reached: np.ndarray
  drawn: np.ndarray
  left: np.ndarray

  @classmethod
  def of(
    cls, config: MarketConfig, shelf: Shelf, history: Sequence[int], candidates: Sequence[int], scores: Sequence[float] | None
  ) -> "_Request":
    """From rows, the history oldest first."""
    bought, shown = np.array(history), np.array(candidates)
    before = np.concatenate([[-1, -1], bought])
    state = sequence_part(config, shelf, before[1:], before[:-1])
    gained = state["complement"] + state["follow"]
    offer = np.exp(gained[:-1])
    for t, row in enumerate(bought):
      offer[t + 1 :, row] = 0
    last = np.repeat(bought[-1:], 2)
    logits = candidate_logits(shelf, last, state["complement"][-1], np.array([[0.0], [config.brand_weight]]), state["follow"][-1])
    left = np.ones(len(offer[0]), bool)
    left[[*history, *candidates]] = False
    return cls(bought, shown, np.array(scores), offer, gained[-1][shown], np.exp(logits.astype(np.float64)), left)


class _Sampler:
  """Draws of hidden tastes, and how a request weighs them.

  Tastes are `[S, D]` in standard deviations from the prior's mean: of leaf categories, of scents, and of the price. The draws' noise is
  the same for all requests.
  """

  def __init__(self, config: MarketConfig, shelf: Shelf, draws: int, seed: int):
    rng = np.random.default_rng(seed)
    self.config, self.shelf, self.leaves = config, shelf, len(shelf["complement"])
    self.dim = self.leaves + len(SCENTS) + 1
    self.noise = rng.normal(size=(draws, self.dim))
    self.quantiles = rng.permutation((np.arange(draws) + 0.5) / draws)  # of the set of favourites: stratified
    self.sets = np.array(list(itertools.combinations(range(config.num_brands), config.favourite_brands)))
    self.of_brand = shelf["brand"][:, None] == np.arange(config.num_brands)  # [N, B]
    self.upstream_noise = max(config.upstream_noise, _LEAST_NOISE)

  def ask(self, request: _Request) -> tuple[np.ndarray, float]:
    """P(label above 0) of the candidates `[K]`, and the effective number of draws."""
    drawn = self._log_drawn(request)
    log_sets, mean, spread = self._approximate(request, drawn)
    tastes = mean + _SPREAD * self.noise @ spread.T
    proposal = np.exp(_SET_POWER * (log_sets - log_sets.max()))
    proposal = (1 - _ANY_SET) * proposal / proposal.sum() + _ANY_SET / len(proposal)
    chosen = np.minimum(np.searchsorted(np.cumsum(proposal), self.quantiles), len(proposal) - 1)

    values = self._values(tastes, self.sets[chosen])
    hidden = values["brand"][:, request.candidates] + request.reached
    log_weights = (
      self._log_bought(request, values["base"] + values["brand"])
      + drawn[chosen]
      + self._log_scores(request, values["taste"][:, request.candidates], hidden)
      + 0.5 * (self.noise**2 - tastes**2).sum(axis=1)  # the prior over the proposal, both normal
      - np.log(proposal[chosen])
    )
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    of_draws = label_probabilities(self.config, values["base"][:, request.candidates].astype(np.float64) + hidden)
    return weights @ of_draws, float(1 / (weights**2).sum())

  def _values(self, tastes: np.ndarray, favourites: np.ndarray) -> dict[str, np.ndarray]:
    of = tastes.astype(np.float32)
    pays = PAYS[0] + PAYS[1] * of[:, -1:]
    named = {"leaf": of[:, : self.leaves], "scent": of[:, self.leaves : -1], "pays": pays, "favourites": favourites}
    return value_items(self.config, self.shelf, named)

  def _log_bought(self, request: _Request, utilities: np.ndarray) -> np.ndarray:
    """log P(history | user) `[S]` up to a constant, from utilities `[S, N]` before any purchase."""
    taken = utilities[:, request.bought].sum(axis=1, dtype=np.float64)
    return taken - np.log(np.exp(utilities) @ request.offer.T).sum(axis=1, dtype=np.float64)

  def _log_scores(self, request: _Request, taste: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """log P(upstream scores | user, candidates) `[S]` up to a constant, from parts `[S, K]` of the candidates' utilities."""
    means = upstream_means(self.config, self.shelf, request.candidates, taste, hidden)
    return np.asarray(-0.5 * (((request.scores - means) / self.upstream_noise) ** 2).sum(axis=1))

  def _log_drawn(self, request: _Request) -> np.ndarray:
    """log P(candidates | favourites) of each set `[M]`: that these come first of items that arrive at exponential times.

    With weights w_k of the candidates and W of all others together it is the integral of exp(-x) prod_k (1 - exp(-x w_k / W)) over x > 0.
    """
    plain, loyal = request.drawn
    more = (loyal - plain)[request.left] @ self.of_brand[request.left]  # [B]
    others = plain[request.left].sum() + more[self.sets].sum(axis=1)
    own = np.where(self._favoured(request), loyal[request.candidates], plain[request.candidates])
    arrived = -np.expm1(-(own / others[:, None])[..., None] * _NODES)
    return np.asarray(np.log(arrived.prod(axis=1) @ _NODE_WEIGHTS))

  def _favoured(self, request: _Request) -> np.ndarray:
    """Whether candidates are of a favourite brand, of each set `[M, K]`."""
    return np.asarray((self.shelf["brand"][request.candidates][:, None] == self.sets[:, None]).any(axis=-1))

  def _approximate(self, request: _Request, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The log-posterior of sets `[M]` at the likeliest tastes, those `[D]`, and a root `[D, D]` of their covariance, by Newton's method.

    Tastes and the likeliest set take turns; only the proposal rests on this, not the weights.
    """
    weight, favoured = self.config.brand_weight, self._favoured(request)
    bought = self.of_brand[request.bought].sum(axis=0)[self.sets].sum(axis=1)  # [M], of a set's brands
    steps = _SLOPE * np.concatenate([np.zeros((1, self.dim)), np.eye(self.dim), -np.eye(self.dim)])
    none = np.broadcast_to(self.sets[:1], (len(steps), self.sets.shape[1]))  # the parts that brands have no part in are read
    mean = np.zeros(self.dim)
    for _ in range(_NEWTON_STEPS):
      values = self._values(mean + steps, none)
      up, down = slice(1, self.dim + 1), slice(self.dim + 1, None)
      slopes, taste = ((values[name][up] - values[name][down]).T.astype(np.float64) / (2 * _SLOPE) for name in ("base", "taste"))
      base, taste = values["base"][0], taste[request.candidates]
      odds = request.offer * np.exp(base)
      shares = odds @ self.of_brand / odds.sum(axis=1, keepdims=True)  # [T, B]
      hidden = request.reached + weight * favoured
      at_mean = values["taste"][:1, request.candidates]
      log_sets = weight * bought - np.log1p(np.expm1(weight) * shares[:, self.sets].sum(axis=-1)).sum(axis=0) + drawn
      log_sets += self._log_scores(request, at_mean, hidden)

      best = int(log_sets.argmax())
      odds = odds * np.where(self.of_brand[:, self.sets[best]].any(axis=1), np.exp(weight), 1)
      odds /= odds.sum(axis=1, keepdims=True)
      expected = odds @ slopes  # [T, D]
      missed = request.scores - upstream_means(self.config, self.shelf, request.candidates, at_mean[0], hidden[best])
      gradient = slopes[request.bought].sum(axis=0) - expected.sum(axis=0) + taste.T @ missed / self.upstream_noise**2 - mean
      curvature = slopes.T @ (slopes * odds.sum(axis=0)[:, None]) - expected.T @ expected
      curvature += taste.T @ taste / self.upstream_noise**2 + np.eye(self.dim)
      mean = mean + np.linalg.solve(curvature, gradient)
    return log_sets, mean, np.linalg.cholesky(np.linalg.inv(curvature))
