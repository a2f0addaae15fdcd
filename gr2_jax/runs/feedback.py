"""What scored policies learn by reinforcement, and their controls, are told of slates: whose labels, how biased, and how weighed."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gr2_jax.data.attributes import SlateAttributes, find_small_brands, slate_attributes
from gr2_jax.data.clicks import draw_clicks
from gr2_jax.data.schema import SPLITS, DataError, Slate
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.load import load_utilities
from gr2_jax.runs.scored import ScoredSlates
from gr2_jax.settings import check_settings, setting

WEIGHINGS = ("none", "propensity")


@dataclasses.dataclass(frozen=True)
class FeedbackOptions:
  """What RL on scored answers and its control are told of slates. Raises ValueError."""

  share: float = setting(
    1.0, "share of the training slates, drawn by the seed, whose labels are told; those of the others are not looked at", above=0, high=1
  )
  source: str = setting(
    "labels",
    "what is told: the slates' own labels, or clicks, drawn anew from a market's true utilities, of what was examined, on training and "
    "validation slates",
    choices=("labels", "clicks"),
  )
  decay: float = setting(1.0, "clicks: place s of the upstream order, from 0 on, is examined with probability `(s + 1) ** -decay`", low=0)
  weighing: str = setting("none", "whether a label's gain is divided by the probability that it was examined", choices=WEIGHINGS)
  clip: float = setting(10.0, "the largest weight that this gives, which bounds the variance at the price of some bias", low=1)

  def __post_init__(self) -> None:
    check_settings(self)


class Feedback(NamedTuple):
  """n slates with their records, their `labels [n, K]`, and the `gains [n, K]` of these, float32, weighed where that is asked; both -1 at
  padding."""

  slates: ScoredSlates
  records: Sequence[Slate]
  labels: np.ndarray
  gains: np.ndarray
  attributes: SlateAttributes

  @property
  def arrays(self) -> dict[str, Any]:
    """What rewards read, by the names of `steps.scored.REWARDED`, and the labels."""
    return {"labels": self.labels, "gains": self.gains, **self.attributes._asdict()}

  def supervise(self, by_gains: bool) -> tuple[np.ndarray, np.ndarray]:
    """Targets `[n, K]` (-1 at padding) and weights `[n]` of the slates for a cross-entropy that normalises targets.

    The labels and the slates' weights; or the gains, with weights that make the loss linear in them, so that weighing keeps it unbiased.
    """
    if not by_gains:
      return self.labels.astype(np.float32), self.slates.weights
    return self.gains, (self.slates.weights * np.maximum(self.gains, 0).sum(axis=1)).astype(np.float32)


def read_feedback(stage: StageContext, split: str, options: FeedbackOptions, small_share: float) -> Feedback:
  """The run's slates of a split as they are told; all but those of training are told whole.

  Raises DataError for weighing without propensities, and where no label that is told is positive.
  """
  slates, records = ScoredSlates.load(stage, split), stage.slates(split)
  labels, propensities = slates.labels, None
  if options.source == "clicks":
    utilities = load_utilities(stage.run, split)
    assert utilities is not None  # of a market's own slates, see the check of the stage
    rng = np.random.default_rng((stage.seed, SPLITS.index(split)))
    labels, propensities = draw_clicks(utilities, options.decay, rng)
  elif options.weighing == "propensity":
    propensities = _logged_propensities(stage, split, labels.shape)
  gains = 2.0 ** np.maximum(labels, 0) - 1
  if options.weighing == "propensity":
    assert propensities is not None
    gains = weigh_by_propensity(gains, propensities, options.clip)
  attributes = read_attributes(stage, records, small_share)
  gains = np.where(slates.labels < 0, -1, gains).astype(np.float32)
  if split == "train" and options.share < 1:
    chosen = choose_share(len(slates), options.share, stage.seed)
    slates, records, labels, gains = slates.take(chosen), tuple(records[i] for i in chosen), labels[chosen], gains[chosen]
    attributes = SlateAttributes(*(array[chosen] for array in attributes))
  if not (gains > 0).any():
    raise DataError(f"--config.rl.feedback: none of {len(gains):,} {split} slates is told a positive label; raise share, or lower decay")
  return Feedback(slates, records, labels, gains, attributes)


def read_attributes(stage: StageContext, slates: Sequence[Slate], small_share: float) -> SlateAttributes:
  """Those of some of the run's slates; small brands are the `small_share` of all that sell least in its log."""
  return slate_attributes(slates, stage.catalogue, find_small_brands(stage.catalogue, stage.log, small_share))


def weigh_by_propensity(gains: np.ndarray, propensities: np.ndarray, clip: float) -> np.ndarray:
  """Gains `[n, K]` over the probability that their candidates were examined: unbiased where no weight is above `clip`."""
  return gains * np.minimum(1 / propensities, clip)


def choose_share(count: int, share: float, seed: int) -> np.ndarray:
  """`share` x `count` slates, rounded and at least one, in ascending order; those of a smaller share are among those of a larger one."""
  number = max(1, round(share * count))
  return np.sort(np.random.default_rng(seed).permutation(count)[:number])


def _logged_propensities(stage: StageContext, split: str, shape: tuple[int, ...]) -> np.ndarray:
  """Those of the slates' records `[n, K]`, 1 at padding."""
  found = np.ones(shape)
  for row, slate in zip(found, stage.slates(split), strict=True):
    if slate.propensities is None:
      raise DataError(
        f"--config.rl.feedback.weighing: 'propensity', but the {split} slate of user {slate.user!r} has no propensities; bring those of "
        "all slates, or set it to none"
      )
    row[: len(slate.propensities)] = slate.propensities
  return found
