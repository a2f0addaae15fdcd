"""Hints: what a prompt tells about a candidate beside the item itself. One record each, and the only place that lists them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from gr2_jax.data.schema import Catalogue, DataError, Slate
from gr2_jax.evidence.counts import TransitionCounts, next_counts
from gr2_jax.language import templates

HintTexts = Callable[[Slate, Catalogue, TransitionCounts | None, bool], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Hint:
  """`texts(slate, catalogue, transitions, full)`: what stands behind each candidate `[K]`, in the slate's order ("" for nothing).

  `full`: in a sentence rather than a word; words stand in `templates`, whose texts the vocabulary learns. `counts`: whether it counts
  events before the request, so that `transitions` must be there; such a hint makes the candidate part depend on the user.
  """

  texts: HintTexts
  counts: bool = False


def _upstream_rank(slate: Slate, catalogue: Catalogue, transitions: TransitionCounts | None, full: bool) -> Sequence[str]:
  return [(templates.UPSTREAM_FULL if full else "{rank}").format(rank=rank + 1) for rank in range(len(slate.candidates))]


def _bought_after(slate: Slate, catalogue: Catalogue, transitions: TransitionCounts | None, full: bool) -> Sequence[str]:
  if transitions is None:
    raise DataError("hints: bought_after needs transitions; fit TransitionCounts on the training histories")
  words = ("", *(templates.AFTER_FULL if full else templates.AFTER_SHORT))
  return [words[min(count, len(words) - 1)] for count in next_counts(slate, catalogue, transitions).tolist()]


# In the order in which prompts show them.
HINTS: Mapping[str, Hint] = {"upstream_rank": Hint(_upstream_rank), "bought_after": Hint(_bought_after, counts=True)}
