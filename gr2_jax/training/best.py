"""The best parameters of a training by a score on held-out data, kept apart from where the training goes on."""

import math
from collections.abc import Callable
from typing import Any

import jax

from gr2_jax.training.checkpoints import Checkpointer


class BestKeeper:
  """Keeps in a folder of its own the parameters with the highest `score(params)`; of equal ones the earlier.

  `consider` is for the step 0 and for `training.loop.fit`'s `on_step`; it scores each `every` steps and at the last of `steps`.
  `tell(step, score)` hears every score. A training that goes on finds its best so far in the folder.
  """

  def __init__(
    self,
    checkpointer: Checkpointer,
    score: Callable[[Any], float],
    *,
    every: int,
    steps: int,
    abstract: Any,
    tell: Callable[[int, float], None] = lambda step, score: None,
  ) -> None:
    self._checkpointer, self._score, self._every, self._steps, self._tell = checkpointer, score, every, steps, tell
    kept = checkpointer.restore_latest({"params": abstract})
    self.best = float("-inf") if kept is None else float(kept[1]["score"])
    self.step = None if kept is None else kept[2]

  def consider(self, step: int, state: Any) -> None:
    """Scores the parameters of a `TrainState` where it is time to."""
    if step % self._every and step != self._steps:
      return
    score = self._score(state.params)
    self._tell(step, score)
    if self.step is None or score > self.best or math.isnan(self.best):
      self.best, self.step = score, step
      self._checkpointer.save(step, {"params": state.params}, {"score": score})

  def load(self, abstract: Any) -> Any:
    """The best parameters, placed as `abstract` says."""
    self._checkpointer.close()
    return self._checkpointer.load_params(abstract)


def abstract_params(params: Any) -> Any:
  """Shapes, dtypes and shardings of parameters, to restore others of their kind."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
