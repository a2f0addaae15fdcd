"""When reinforcement learning stops because it learns nothing."""

from collections.abc import Mapping

from gr2_jax.errors import UserError
from gr2_jax.training.metric import Metric, merge


class NoSignalError(UserError):
  """In too many steps in a row no group carried a signal; the message counts why, and says what helps."""


class SilenceCounter:
  """Counts steps in a row in which no group carried a signal, from the metrics of `collect_groups`; begins at 0 when a run is continued.

  Such a step leaves the parameters as they are, and the next one asks the same policy again: many in a row are a run that learns nothing.
  """

  def __init__(self, limit: int) -> None:
    self._limit = limit
    self._silent: list[Mapping[str, Metric]] = []

  def add(self, metrics: Mapping[str, Metric]) -> None:
    """Raises NoSignalError at the limit. All processes do so alike, where the metrics are those of all of them."""
    self._silent.append(metrics)
    total = merge(self._silent)
    no_answer, alike = total["all_invalid_fraction"], total["all_equal_fraction"]
    if no_answer.sum + alike.sum < alike.count:
      self._silent.clear()
    if len(self._silent) < self._limit:
      return
    raise NoSignalError(
      f"no group carried a signal in {len(self._silent)} steps in a row, so nothing was learnt: of {int(alike.count):,} groups "
      f"{int(no_answer.sum):,} had no valid answer and {int(alike.sum):,} had answers of equal reward; "
      f"{float(total['truncated_rate'].mean()):.0%} of the answers were cut off at the limit. Without valid answers: train SFT longer, "
      "raise max_new_tokens, or constrain decoding to the slate. With equal rewards: raise the temperature or the group size, and see "
      "whether the slates have both positives and negatives"
    )
