"""Training slates in endless random order, each shown and written as a prompt."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.language.prompts import PromptContext, PromptStyle, present
from gr2_jax.rollout.rerank import PromptBatch, pad_shown, render_prompts
from gr2_jax.training.mesh import to_global


class Asked(NamedTuple):
  """Prompts on the mesh, P of them: `tokens, mask [P, Lp]`, `references [P, K', L]` (see `PromptBatch`), `shown [P, K]` and
  `labels [P, K]` of the candidates (-1 at padding).
  """

  tokens: jax.Array
  mask: jax.Array
  references: jax.Array
  shown: jax.Array
  labels: jax.Array


class Drawn(NamedTuple):
  """Slates of this process's share of a batch: their `indices [P]` among the training slates, themselves, how each is `shown` (candidate at
  each slot), their prompts, all of one length, and their `weights [P]`.
  """

  indices: np.ndarray
  slates: list[Slate]
  shown: list[np.ndarray]
  prompts: PromptBatch
  labels: np.ndarray
  weights: np.ndarray

  @property
  def presented(self) -> np.ndarray:
    """The candidate at each slot, `[P, K]`; of a shorter slate the padding comes last."""
    return pad_shown(self.shown, self.labels.shape[1])

  def to_mesh(self, mesh: Mesh) -> Asked:
    """What a compiled rollout reads, as global arrays."""
    prompts = self.prompts
    return Asked(*to_global((prompts.tokens, prompts.mask, prompts.references, self.presented, self.labels), mesh))


def draw_indices(count: int, number: int, seed: int) -> grain.DatasetIterator:
  """Batches of `number` of `count` training slates: the index of each, `slate`, and a number drawn for its presentation, `draw`."""
  return make_pipeline(
    range(count),
    seed=seed,
    batch_size=number,
    map_fn=lambda index, rng: {"slate": np.int32(index), "draw": rng.integers(2**31, dtype=np.int64)},
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


class SlateStream:
  """An endless iterator of `Drawn`, `prompts` slates at a time over all processes; each epoch is shuffled anew from `seed`.

  `presentation`: upstream, or shuffled by the seed, the slate and a number drawn for it. All prompts have one length, whatever the order of
  their candidates, so nothing is compiled later. It saves its place with `get_state` and returns to it with `set_state`.
  """

  def __init__(
    self, slates: Sequence[Slate], context: PromptContext, style: PromptStyle, *, prompts: int, presentation: str, seed: int
  ) -> None:
    self.slates, self.context, self.style = slates, context, style
    self._presentation, self._seed = presentation, seed
    self._labels = slate_labels(slates)
    self._weights = np.array([slate.weight for slate in slates], np.float32)
    self._position = draw_indices(len(slates), prompts, seed)
    in_order = [np.arange(len(slate.candidates)) for slate in slates]
    self._length = render_prompts(slates, in_order, context, style).tokens.shape[1]

  def __iter__(self) -> "SlateStream":
    return self

  def __next__(self) -> Drawn:
    place = next(self._position)
    indices = place["slate"]
    chosen = [self.slates[i] for i in indices]
    shown = [
      present(len(slate.candidates), self._presentation, (self._seed, int(index), int(draw)))
      for slate, index, draw in zip(chosen, indices, place["draw"], strict=True)
    ]
    prompts = render_prompts(chosen, shown, self.context, self.style, length=self._length)
    return Drawn(indices, chosen, shown, prompts, self._labels[indices], self._weights[indices])

  def get_state(self) -> Any:
    """The place, as JSON."""
    return self._position.get_state()

  def set_state(self, state: Any) -> None:
    """Goes to a place that `get_state` gave."""
    self._position.set_state(state)
