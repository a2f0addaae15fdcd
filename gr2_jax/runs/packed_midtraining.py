"""Mid-training on packed items with a run's files: the model of all users, and for training slates cut from the log one for each fold."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import Catalogue, DataError, History, Slate
from gr2_jax.data.slates import deal_folds, pad_histories, pad_rows
from gr2_jax.evidence.items import unit_vectors
from gr2_jax.models.packed_items import ItemRows, ItemTable, PackedItems, one_a_row
from gr2_jax.numerics import filled_batches
from gr2_jax.rollout.catalogue_scores import make_packed_candidate_scores
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.load import load_trained
from gr2_jax.runs.run import Run
from gr2_jax.runs.starts import preset_config
from gr2_jax.runs.training import begin, count_held_out, train
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.settings import check_settings, setting
from gr2_jax.steps.packed_items import make_next_item_loss, make_next_item_ndcg
from gr2_jax.steps.update import make_update
from gr2_jax.training.loop import batch_step
from gr2_jax.training.mesh import jit_update, put_replicated
from gr2_jax.training.metric import Metric

HISTORIES_AT_ONCE = 256  # of slates that are scored, or held out


@dataclasses.dataclass(frozen=True)
class PackedOptions:
  """Mid-training on packed items. Raises ValueError."""

  dropout: float = setting(0.15, "share of what is read, and of the states, that is left out in training", low=0, below=1)
  negatives: int = setting(256, "drawn items from which the dense head tells the next one", unit="items", low=1)
  code_weight: float = setting(0.1, "weight of the semantic ID's loss beside the dense head's", low=0)
  held_out: int = setting(500, "users who choose the step that is kept; at most a tenth of all", unit="users", low=1)
  chosen_by: str = setting(
    "loss",
    "how the held-out users' next items choose it: by the dense head's loss, or by NDCG@10 among all items, which still rises where the "
    "loss does not fall any more, and takes longer",
    choices=("loss", "ndcg@10"),
  )
  evaluate_every: int = setting(50, "steps between looks at the held-out users", unit="steps", low=1)
  whole_log: bool = setting(
    False, "whether the last two items of each user are learnt as well: right where slates come with the log, and their requests after it"
  )
  folds: int = setting(
    0, "groups of users, each scored by a model that has not seen it: needed where training slates are cut from the log; 0: none", low=0
  )

  def __post_init__(self) -> None:
    check_settings(self)
    if self.folds == 1:
      raise ValueError("folds: 1 leaves no other users to learn from; use 0 (none) or at least 2")


def make_packed_items(config: ConfigDict, num_items: int, code_sizes: tuple[int, int], text_dim: int) -> PackedItems:
  """The model of packed items of a config, for so many items with `code_sizes` (levels, codebook size) and text vectors of `text_dim`."""
  levels, codebook_size = code_sizes
  return PackedItems(
    preset_config(config, 1),
    num_items=num_items,
    levels=levels,
    codebook_size=codebook_size,
    text_dim=text_dim,
    dropout=config.midtrain.packed.dropout,
  )


def open_packed_items(run: Run, catalogue: Catalogue) -> tuple[PackedItems, ItemTable]:
  """The run's model of packed items, and what it reads of the catalogue."""
  sids = SemanticIDTable.load(run.path("tokenize", "sids.npz"))
  units = unit_vectors(catalogue, np.load(run.path("tokenize", "vectors.npy")))
  model = make_packed_items(run.config, len(catalogue), (sids.codes.shape[1], sids.codebook_size), units.shape[1])
  return model, ItemTable(sids.codes, units)


def train_packed_items(stage: StageContext) -> Any:
  """Trains on the users' histories, and without each fold of them; returns the parameters of the model of all users."""
  options = stage.options.packed
  histories = _histories(stage)
  for fold, outside in enumerate(_folds(histories, options.folds, stage.seed)):
    _train(stage, [history for history, out in zip(histories, outside, strict=True) if not out], _fold_name(fold))
  return _train(stage, histories, "checkpoints")


def load_packed_items(run: Run, catalogue: Catalogue, mesh: Any, name: str = "checkpoints") -> tuple[PackedItems, Any, ItemTable]:
  """The run's model of packed items, the parameters in `RUN/midtrain/NAME` (the model of all users), and what it reads of the catalogue."""
  model, table = open_packed_items(run, catalogue)
  return model, load_trained(run, model, mesh, "midtrain", name), table


def load_packed_candidate_scores(
  run: Run, catalogue: Catalogue, mesh: Any, name: str = "checkpoints"
) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
  """`scores(histories, candidates) -> [B, K]` by what lies in `RUN/midtrain/NAME`: the model of all users; see
  `make_packed_candidate_scores`.
  """
  return make_packed_candidate_scores(*load_packed_items(run, catalogue, mesh, name))


def load_packed_scores(run: Run, catalogue: Catalogue, mesh: Any, name: str = "checkpoints") -> Callable[[Sequence[Slate]], np.ndarray]:
  """`scores(slates) -> [n, K]` by the same, NaN where a slate has fewer than K candidates."""
  score, max_history = load_packed_candidate_scores(run, catalogue, mesh, name), run.config.midtrain.max_history

  def scores(slates: Sequence[Slate]) -> np.ndarray:
    rows = pad_rows([catalogue.to_rows(slate.candidates) for slate in slates])
    past = pad_histories([catalogue.to_rows(slate.history) for slate in slates], max_history)
    found = np.zeros(rows.shape, np.float32)
    for batch in filled_batches(len(slates), HISTORIES_AT_ONCE):
      found[batch] = score(past[batch], rows[batch])
    return np.where(rows >= 0, found, np.nan)

  return scores


def out_of_fold_packed_scores(stage: StageContext, slates: Sequence[Slate]) -> np.ndarray:
  """Scores `[n, K]` of training slates that were cut from the log, each by the model that has not seen its user."""
  histories = _histories(stage)
  folds = _folds(histories, stage.config.midtrain.packed.folds, stage.seed)
  fold_of = {history.user: fold for fold, outside in enumerate(folds) for history, out in zip(histories, outside, strict=True) if out}
  width = max(len(slate.candidates) for slate in slates)
  scores = np.full((len(slates), width), np.nan)
  for fold in range(len(folds)):
    inside = [place for place, slate in enumerate(slates) if fold_of[slate.user] == fold]
    if inside:
      found = load_packed_scores(stage.run, stage.catalogue, stage.mesh, _fold_name(fold))([slates[place] for place in inside])
      scores[inside, : found.shape[1]] = found
  return scores


def held_out_users(stage: StageContext) -> set[str]:
  """Users of whom the model of all users has learnt nothing: their losses chose its step alone."""
  names = [history.user for history in _histories(stage) if len(history.items) > 1]
  order, cut = _hold_out(len(names), stage.options.packed.held_out, stage.seed)
  return {names[i] for i in order[:cut]}


def _histories(stage: StageContext) -> tuple[History, ...]:
  return stage.log if stage.config.midtrain.packed.whole_log else stage.split.train


def _hold_out(users: int, most: int, seed: int) -> tuple[np.ndarray, int]:
  """Users in random order, and how many of the first are held out."""
  return np.random.default_rng(seed).permutation(users), count_held_out(users, most)


def _fold_name(fold: int) -> str:
  return f"fold_{fold + 1}"


def _folds(histories: Sequence[History], folds: int, seed: int) -> list[np.ndarray]:
  """Of each fold, which histories are in it, `[users]`."""
  return list(deal_folds(len(histories), folds, seed) == np.arange(folds)[:, None]) if folds else []


def _train(stage: StageContext, histories: Sequence[History], name: str) -> Any:
  """The parameters at the step that held-out users choose, kept in `RUN/midtrain/NAME`."""
  options, section = stage.options, stage.options.packed
  model, table = open_packed_items(stage.run, stage.catalogue)
  rows = [np.asarray(stage.catalogue.to_rows(history.items)) for history in histories if len(history.items) > 1]
  if len(rows) < 2:
    raise DataError("midtrain: next items are learnt from users with two items or more, of which there are fewer than two; bring more")
  order, cut = _hold_out(len(rows), section.held_out, stage.seed)
  held_out = pad_histories([rows[i] for i in order[:cut]], options.max_history + 1)
  held_out = np.pad(held_out, ((0, -cut % HISTORIES_AT_ONCE), (0, 0)), constant_values=-1)  # parts of one shape
  batches = _make_batches(stage, [rows[i] for i in order[cut:]], stage.seed)

  begun = begin(stage, model, stage.name, None)
  loss = make_next_item_loss(model, negatives=section.negatives, code_weight=section.code_weight)
  on_devices = put_replicated(table, stage.mesh)
  key = stage.key

  def to_rows(batch: Mapping[str, np.ndarray]) -> ItemRows:
    return ItemRows(batch["tokens"], batch["positions"], batch["segment_ids"])

  update = make_update(begun.optimizer, loss, whole_batch=lambda step, batch: {"key": jax.random.fold_in(key, step)})
  compiled = jit_update(update, stage.mesh, begun.shardings, frozen=(on_devices,))
  step = batch_step(compiled, lambda _: to_rows(next(batches)))
  ndcg = make_next_item_ndcg(model)

  @jax.jit
  def judge(params: Any, batch: ItemRows, table: ItemTable) -> Metric:
    if section.chosen_by == "ndcg@10":
      return ndcg(params, batch, table)
    nll = loss(params, batch, table, key=key, deterministic=True)[1]["nll_dense"]
    return Metric(-nll.sum, nll.count)

  def score(params: Any) -> float:
    total = count = 0.0
    for start in range(0, len(held_out), HISTORIES_AT_ONCE):
      metric = judge(params, one_a_row(held_out[start : start + HISTORIES_AT_ONCE]), on_devices)
      total, count = total + float(metric.sum), count + float(metric.count)
    return total / count

  end = train(stage, stage.name, begun, step, batches, name=name, best=(score, section.evaluate_every))
  return end.params


def _make_batches(stage: StageContext, histories: Sequence[np.ndarray], seed: int) -> grain.DatasetIterator:
  """Rows of windows of histories, at a place drawn anew where a history is longer than `max_history` and what follows."""
  length = stage.options.max_history + 1

  def to_window(history: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    start = int(rng.integers(max(len(history) - length, 0) + 1))
    return {"tokens": history[start : start + length]}

  return make_pipeline(
    histories,
    seed=seed,
    batch_size=stage.options.batch_size,
    map_fn=to_window,
    pack_length=stage.options.row_length,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
