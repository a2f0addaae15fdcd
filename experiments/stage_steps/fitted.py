"""The steps of what is fitted before policies: the tokenizer, mid-training in both forms, and the upstream rankers."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.stage_steps.sizes import Sizes, make_vocabulary
from experiments.stage_steps.step import (
  Argument,
  StageStep,
  abstract_params,
  abstract_state,
  abstract_training,
  count_looks,
  integers,
  random_key,
  shape,
)
from experiments.stages.midtrain import MidtrainOptions
from experiments.stages.slates import SlatesOptions
from experiments.stages.tokenize import TokenizeOptions
from gr2_jax.models import ctr, sasrec
from gr2_jax.models.ctr import CtrConfig
from gr2_jax.models.packed_items import ItemRows, ItemTable
from gr2_jax.models.sasrec import SasrecConfig
from gr2_jax.models.transformer import Decoder, abstract_boxed
from gr2_jax.runs.load import make_lora
from gr2_jax.runs.packed_midtraining import HISTORIES_AT_ONCE, make_packed_items
from gr2_jax.runs.starts import model_config
from gr2_jax.runs.training import TrainingOptions, count_held_out
from gr2_jax.settings import read_record
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.packed_items import make_next_item_loss, make_next_item_ndcg
from gr2_jax.steps.tokenizer import abstract_run, make_tokenizer_update
from gr2_jax.steps.update import make_update, only_rows
from gr2_jax.training.state import make_optimizer

_UPDATES = 4  # of an upstream ranker's epoch that stand for all of it


def tokenize(config: ConfigDict, sizes: Sizes) -> Iterator[StageStep]:
  """An update of the RQ-VAE; the warm-up's are cheaper, and counted as such."""
  options: TokenizeOptions = read_record(TokenizeOptions, config, "tokenize")
  rqvae = dataclasses.replace(options.rqvae.network, levels=sizes.levels, codebook_size=sizes.codebook_size)
  training = dataclasses.replace(options.training, rqvae=rqvae)
  update = make_tokenizer_update(rqvae, sizes.vector_dim, optax.adamw(training.learning_rate))
  rows = min(training.batch_size, sizes.items)
  state = abstract_run(training, sizes.vector_dim).state
  batch = {"vectors": shape(rows, sizes.vector_dim), "weights": shape(rows)}
  calls = -(-sizes.items // rows) * (training.epochs + training.warmup_epochs)
  arguments = (Argument("whole", _without_devices(state)), Argument("batch", batch))
  yield StageStep("tokenize", "update", update, arguments, calls, trains=True, positions=rows)


def midtrain(config: ConfigDict, sizes: Sizes) -> Iterator[StageStep]:
  """Of packed items, once for all users and once without each fold of them; or of tokens."""
  if config.midtrain.form == "packed":
    yield from _packed(config, sizes)
    return
  options: MidtrainOptions = read_record(MidtrainOptions, config, "midtrain")
  vocabulary = make_vocabulary(config, sizes)
  decoder = Decoder(model_config(config, vocabulary))
  trainings: dict[str, tuple[TrainingOptions, int | None]] = {"update": (options.training, None)}
  if options.warmup_rows.enabled:
    trainings = {"warm-up of new rows": (options.warmup_rows.training, vocabulary.new_token_start)} | trainings
  # From random numbers all is learnt here, whatever the config says of adapters.
  lora = None if config.model.init == "random" else make_lora(config, lambda: vocabulary)
  rows = options.batch_size, options.row_length
  batch = {name: integers(*rows) for name in ("tokens", "positions", "segment_ids", "parts")}
  for name, (training, first) in trainings.items():
    optimizer = make_optimizer(training.optimizer, training.steps)
    moved = optimizer if first is None else only_rows(optimizer, first)
    update = make_update(moved, make_lm_loss(decoder, {"token": 1.0}), join=lora.join if lora else None)
    arguments = abstract_training(decoder, optimizer, lora, Argument("batch", batch))
    told: dict[str, Any] = {"positions": rows[0] * rows[1], "save_every": training.save_every}
    # Most are histories in codes.
    told["examples"] = round(rows[0] * rows[1] / (_mean_length(sizes, options) * sizes.levels))
    yield StageStep("midtrain", name, update, arguments, training.steps, trains=True, **told)


def _packed(config: ConfigDict, sizes: Sizes) -> Iterator[StageStep]:
  options: MidtrainOptions = read_record(MidtrainOptions, config, "midtrain")
  packed, training, fits = options.packed, options.training, options.packed.folds + 1
  model = make_packed_items(config, sizes.items, (sizes.levels, sizes.codebook_size), sizes.vector_dim)
  table = Argument("whole", ItemTable(integers(sizes.items, sizes.levels), shape(sizes.items, sizes.vector_dim)))
  optimizer, loss = (
    make_optimizer(training.optimizer, training.steps),
    make_next_item_loss(model, negatives=packed.negatives, code_weight=packed.code_weight),
  )
  key = jax.random.key(0)
  update = make_update(optimizer, loss, whole_batch=lambda step, batch: {"key": jax.random.fold_in(key, step)})
  rows = options.batch_size, options.row_length
  arguments = (abstract_state(model, optimizer), Argument("batch", _item_rows(*rows)), table)
  told: dict[str, Any] = {
    "positions": rows[0] * rows[1],
    "examples": round(rows[0] * rows[1] / _mean_length(sizes, options)),
    "trainings": fits,
    "save_every": training.save_every,
    "look_every": packed.evaluate_every,
  }
  yield StageStep("midtrain", "update", update, arguments, fits * training.steps, trains=True, **told)

  held_out = -(-count_held_out(sizes.users, packed.held_out) // HISTORIES_AT_ONCE)
  by_loss = lambda params, batch, table: loss(params, batch, table, key=key, deterministic=True)[1]
  judge: Any = make_next_item_ndcg(model) if packed.chosen_by == "ndcg@10" else by_loss
  rows = HISTORIES_AT_ONCE, options.max_history + 1
  arguments = (abstract_params(model), Argument("batch", _item_rows(*rows)), table)
  looks = fits * held_out * count_looks(training.steps, packed.evaluate_every)
  yield StageStep("midtrain", "validation", judge, arguments, looks, positions=rows[0] * rows[1])


def _mean_length(sizes: Sizes, options: MidtrainOptions) -> float:
  """Items of a user's history, of which as many are learnt at once as there is room for."""
  length = sizes.interactions / sizes.users - (0 if options.packed.whole_log else 2)
  return max(1.0, min(length, options.max_history + 1))


def slates(config: ConfigDict, sizes: Sizes) -> Iterator[StageStep]:
  """A few updates of the upstream rankers that are fitted here: one without each fold of users, and for the order itself one on all."""
  options: SlatesOptions = read_record(SlatesOptions, config, "slates")
  # All that is fitted without a fold takes folds - 1 passes over the log.
  if options.source == "sasrec":
    yield _sasrec_updates(options.sasrec, sizes, options.folds)
  if options.source == "ctr" or (options.source == "sasrec" and options.also == "ctr"):
    yield _ctr_updates(options.ctr, sizes, options.folds - (options.source != "ctr"))


def _ctr_updates(options: CtrConfig, sizes: Sizes, passes: int) -> StageStep:
  purchases = _count_learnt(sizes)
  batch = min(options.batch, purchases)
  examples = batch * min(_UPDATES, purchases // batch)
  tables = {"history": (sizes.items, options.width), "item": (sizes.items, options.width), "bias": (sizes.items,)}
  params = {name: shape(*rows) for name, rows in tables.items()}
  state = Argument("whole", (params, jax.eval_shape(optax.adam(options.learning_rate).init, params)))

  def update(state: Any, past: jax.Array, target: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
    params, opt_state, loss = ctr.run_epoch(*state, past, target, key, options)
    return (params, opt_state), loss

  data = Argument("whole", integers(examples, options.max_history)), Argument("whole", integers(examples))
  calls = round(passes * options.epochs * purchases / examples)
  return StageStep("slates", "updates of the click model", update, (state, *data, random_key()), calls, trains=True, positions=examples)


def _sasrec_updates(options: SasrecConfig, sizes: Sizes, passes: int) -> StageStep:
  length = options.max_history + 1
  packed = -(-(_count_learnt(sizes) + sizes.users) // length)
  batch = min(max(options.batch // length, 1), packed)
  rows = _item_rows(batch * min(_UPDATES, packed // batch), length)
  table = ItemTable(integers(sizes.items, 0), shape(sizes.items, sizes.vector_dim))
  network = sasrec.make_network(options, sizes.items, sizes.vector_dim)
  params = nn.unbox(abstract_boxed(network))
  state = Argument("whole", (params, jax.eval_shape(sasrec.make_rule(options, rows).init, params)))

  def update(state: Any, rows: ItemRows, table: ItemTable, key: jax.Array) -> tuple[Any, jax.Array]:
    params, opt_state, loss = sasrec.run_epoch(*state, rows, table, key, options)
    return (params, opt_state), loss

  arguments = (state, Argument("whole", rows), Argument("whole", table), random_key())
  calls, read = round(passes * options.epochs * packed / len(rows.items)), math.prod(rows.items.shape)
  return StageStep("slates", "updates of SASRec", update, arguments, calls, trains=True, positions=read)


def _count_learnt(sizes: Sizes) -> int:
  """Items of the log that a ranker learns to tell: all but the first and the last two of each user."""
  return max(sizes.interactions - 3 * sizes.users, 1)


def _item_rows(rows: int, length: int) -> ItemRows:
  return ItemRows(*(integers(rows, length) for _ in ItemRows._fields))


def _without_devices(tree: Any) -> Any:
  return jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), tree)
