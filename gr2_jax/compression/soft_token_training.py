"""Variant C of the compressor: the training of soft tokens against the run's frozen policy, and histories named by them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gr2_jax.compression.cache import CompressFn, memory_path
from gr2_jax.compression.rules import check_budget, fit_soft_tokens, prompt_rows
from gr2_jax.compression.soft_tokens import (
  SoftTokenBatch,
  SoftTokenEncoder,
  encode_items,
  init_encoder,
  make_soft_token_loss,
  soft_token_ids,
)
from gr2_jax.data.schema import Slate
from gr2_jax.rl.draw import Drawn
from gr2_jax.rl.options import RolloutOptions
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policy_training import make_local_roll_out, make_stream
from gr2_jax.runs.training import Begun, TrainingOptions, train
from gr2_jax.settings import check_settings, setting, spread
from gr2_jax.steps.update import make_update
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import init_sharded, jit_update
from gr2_jax.training.state import OptimizerConfig, TrainState, init_state, make_optimizer

ENCODED = 512  # items at once


@dataclasses.dataclass(frozen=True)
class SoftTokenOptions:
  """Vectors of an item, which the frozen policy reads instead of its tokens. Raises ValueError."""

  per_item: int = setting(1, "vectors of an item", unit="soft tokens", low=1)
  width: int = setting(128, "width of the encoder that makes them", low=1)
  batch_size: int = setting(16, "slates of an update", unit="slates", low=1)
  temperature: float = setting(
    1.0, "temperature of the policy's answers to full prompts, by which full and shortened ones are compared", above=0
  )
  training: TrainingOptions = spread(TrainingOptions(300, OptimizerConfig(1e-3, schedule="cosine", warmup_steps=20)))

  def __post_init__(self) -> None:
    check_settings(self)


class ItemArrays(NamedTuple):
  """Tokens and mask `[N, T]` of every item as histories show it, and its code tokens `[N, levels]`."""

  tokens: np.ndarray
  mask: np.ndarray
  sid_tokens: np.ndarray

  def take(self, rows: np.ndarray) -> "ItemArrays":
    """Those of the items at `rows [...]`."""
    return ItemArrays(*(array[rows] for array in self))


def make_soft_tokens(stage: StageContext) -> CompressFn:
  """Trains the encoder where it is not trained yet, writes the soft tokens of all items, and names a history's items by them."""
  options: SoftTokenOptions = stage.options.soft_tokens
  check_budget(stage.options.budget, options.per_item)
  policy, items = stage.load_params("rl"), _item_arrays(stage)
  encoder = SoftTokenEncoder(options.per_item, options.width)
  params = _train(stage, encoder, policy, items)
  if stage.run.main:
    np.save(memory_path(stage.run), _encode_all(encoder, params, policy["embedding"], items))

  def compress(slates: Sequence[Slate]) -> list[tuple[list[int], str]]:
    ids = [soft_token_ids(_latest(stage, slate), options.per_item).tolist() for slate in slates]
    return [(of, "ok" if of else "no_history") for of in ids]

  return compress


def _latest(stage: StageContext, slate: Slate) -> list[int]:
  """Rows of the latest items whose soft tokens fit into the budget."""
  return fit_soft_tokens(prompt_rows(slate, stage.prompts, stage.style), stage.options.budget, stage.options.soft_tokens.per_item)


def _item_arrays(stage: StageContext) -> ItemArrays:
  context, style, vocabulary = stage.prompts, stage.style, stage.vocabulary
  rows = range(len(stage.catalogue))
  listed = [context.item_tokens(row, style.history_fields, style) for row in rows]
  tokens = np.full((len(listed), max(map(len, listed))), vocabulary.pad_id, np.int32)
  for row, of in enumerate(listed):
    tokens[row, : len(of)] = of
  lengths = np.array([[len(of)] for of in listed])
  mask = (np.arange(tokens.shape[1]) < lengths).astype(np.int32)
  return ItemArrays(tokens, mask, np.array([vocabulary.sid_tokens(context.codes[row]) for row in rows], np.int32))


def _encode_all(encoder: SoftTokenEncoder, params: Any, table: jax.Array, items: ItemArrays) -> np.ndarray:
  """Memory `[N * m, D]` of the whole catalogue."""
  encode = jax.jit(lambda *of: encode_items(encoder, params, table, *of))
  size = len(items.tokens)
  parts = []
  for start in range(0, size, ENCODED):
    rows = np.arange(start, start + ENCODED) % size  # the last part is filled up, so that one shape is compiled
    part = np.asarray(encode(*items.take(rows)))
    parts.append(part[: (size - start) * encoder.per_item])
  return np.concatenate(parts)


def _train(stage: StageContext, encoder: SoftTokenEncoder, policy: Any, items: ItemArrays) -> Any:
  """The encoder's parameters: the policy answers full prompts of shuffled slates, and the same prompts are written with soft tokens."""
  options: SoftTokenOptions = stage.options.soft_tokens
  optimizer = make_optimizer(options.training.optimizer, options.training.steps)
  features = policy["embedding"].shape[1]
  key = jax.random.fold_in(stage.key, 1)
  begun = Begun(optimizer, *init_sharded(lambda key: init_state(init_encoder(encoder, key, features), optimizer), key, stage.mesh))
  loss_fn = make_soft_token_loss(stage.decoder, encoder, stage.constraint(stage.style))
  update = jit_update(make_update(optimizer, loss_fn), stage.mesh, begun.shardings, frozen=(policy,))
  sizes = {"group": 1, "max_new_tokens": stage.config.decoding.max_new_tokens, "temperature": options.temperature}
  rollout = RolloutOptions(prompts=options.batch_size, presentation="shuffled", **sizes)
  stream = make_stream(stage, stage.style, rollout)
  answer = make_local_roll_out(stage, stage.decoder, stage.style, rollout)
  most_items = max(len(_latest(stage, slate)) for slate in stream.slates)
  in_order = [np.arange(len(slate.candidates)) for slate in stream.slates]
  bare = render_prompts(stream.slates, in_order, stage.prompts, stage.style, histories=[[]] * len(stream.slates)).tokens.shape[1]

  def get_batch(state: TrainState) -> SoftTokenBatch:
    drawn = next(stream)
    rolled = answer(policy, drawn, jax.random.fold_in(stage.key, int(state.step)))
    return _to_batch(stage, drawn, rolled.completions[:, 0], rolled.completion_mask[:, 0], items, most_items, bare)

  return train(stage, "compress.soft_tokens", begun, batch_step(update, get_batch), stream, name="soft_tokens").params


def _to_batch(
  stage: StageContext, drawn: Drawn, completions: Any, mask: Any, items: ItemArrays, most_items: int, bare: int
) -> SoftTokenBatch:
  """Both forms of the drawn prompts; `bare`: tokens of the longest prompt without a history."""
  per_item = stage.options.soft_tokens.per_item
  local = stage.options.soft_tokens.batch_size // jax.process_count()
  rows = np.zeros((len(drawn.slates), most_items), np.int64)
  histories = []
  for p, slate in enumerate(drawn.slates):
    latest = _latest(stage, slate)
    rows[p, : len(latest)] = latest
    first = (jax.process_index() * local + p) * most_items
    histories.append(soft_token_ids(np.arange(first, first + len(latest)), per_item).tolist())
  length = bare + most_items * per_item
  short = render_prompts(drawn.slates, drawn.shown, stage.prompts, stage.style, length=length, histories=histories)
  of_items = items.take(rows)
  return SoftTokenBatch(
    prompts=drawn.prompts.tokens,
    prompt_mask=drawn.prompts.mask,
    short=short.tokens,
    short_mask=short.mask,
    completions=completions,
    completion_mask=mask.astype(np.int32),
    item_tokens=of_items.tokens,
    item_mask=of_items.mask,
    sid_tokens=of_items.sid_tokens,
    weights=drawn.weights,
  )
