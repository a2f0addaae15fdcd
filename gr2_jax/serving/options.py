"""What the caller of a re-ranker may choose."""

import dataclasses
from collections.abc import Sequence

from gr2_jax.data.schema import DataError
from gr2_jax.serving.request import MODES


@dataclasses.dataclass(frozen=True)
class Options:
  """`mode` and `presentations` of requests that name none; `modes` that are served; `batch_size` rows at most are answered together.

  `modes` None: those that the policy was trained to answer in; `mode` None: the first of these that is served.

  `prompt_lengths`: to which prompts are padded (none given: half the longest prompt, and it whole; with compressed histories the usual
  prompt's in place of half the longest). `prefix_cache`: slates that stay on the device for reuse (0: none). The most candidates of a
  request (None: of a written policy as many as the vocabulary has names, and never more; of a scored one those of the longest slate of its
  run), history items and presentations.
  """

  mode: str | None = None
  presentations: int = 1
  modes: tuple[str, ...] | None = None
  batch_size: int = 16
  prompt_lengths: tuple[int, ...] = ()
  prefix_cache: int = 0
  max_candidates: int | None = None
  max_history: int = 1000
  max_presentations: int = 8

  def __post_init__(self) -> None:
    if self.modes is not None and not self.modes:
      raise DataError(f"modes: none; choose from {', '.join(MODES)}")
    own = () if self.mode is None else ((self.mode, self.modes or MODES),)
    for mode, known in (*((mode, MODES) for mode in self.modes or ()), *own):
      if mode not in known:
        raise DataError(f"mode: {mode!r} is not known; choose from {', '.join(known)}")
    for name in ("batch_size", "presentations", "max_presentations"):
      if getattr(self, name) < 1:
        raise DataError(f"{name}: {getattr(self, name)} must be at least 1")

  def for_policy(self, trained: Sequence[str], *, force: bool = False) -> "Options":
    """With `modes` and `mode` filled in for a policy that was `trained` to answer in some modes, the first above all.

    Raises DataError for others, in which its orders mean nothing, unless to `force` them.
    """
    asked = dict.fromkeys([*(self.modes or ()), *([self.mode] if self.mode else [])])
    untrained = [mode for mode in asked if mode not in trained]
    if untrained and not force:
      raise DataError(f"mode: the policy was not trained to answer in the mode {untrained[0]!r}; choose from {', '.join(trained)}")
    modes = self.modes or tuple(dict.fromkeys([*trained, *asked]))
    first = next((mode for mode in trained if mode in modes), modes[0])
    return dataclasses.replace(self, modes=modes, mode=self.mode or first)
