"""Variant C of the compressor: a few vectors for each item, from an encoder that is trained against the frozen policy."""

from collections.abc import Sequence

import jax
import numpy as np

from gr2_jax.compression.cache import CompressFn
from gr2_jax.compression.encoder import SlotEncoder, encode_items, init_encoder, slot_ids
from gr2_jax.compression.rules import check_budget, fit_slots, prompt_rows
from gr2_jax.compression.update import SlotBatch, make_slot_update
from gr2_jax.data.schema import Slate
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.artifacts import load_policy, load_slates, make_decoder, run_mesh, slate_constraint, stage_key
from gr2_jax.runs.load import memory_path
from gr2_jax.runs.slate_training import draw_slates, make_next_prompts
from gr2_jax.runs.training import train
from gr2_jax.training.mesh import batch_sharding, init_sharded, replicated, to_global, to_local
from gr2_jax.training.state import OptimizerConfig, init_state, make_optimizer

_ENCODED = 512  # items at once


def make_slots(run, context, style, progress, stop) -> CompressFn:
  """Trains the encoder where it is not trained yet, writes the slots of all items, and names a history's items by their slots."""
  options = run.config.compressor.slots
  check_budget(run.config.compressor.budget, options.per_item)
  policy = load_policy(run, "rl", make_decoder(run, context.vocabulary))
  items = _item_arrays(context, style)
  encoder = SlotEncoder(options.per_item, options.width)
  params = _train(run, encoder, policy, items, context, style, progress, stop)
  if run.main:
    np.save(memory_path(run), _encode_all(encoder, params, policy["embedding"], items))

  def compress(slates: Sequence[Slate]) -> list[tuple[list[int], str]]:
    ids = [slot_ids(_latest(run, slate, context, style), options.per_item).tolist() for slate in slates]
    return [(of, "ok" if of else "no_history") for of in ids]

  return compress


def _latest(run, slate, context, style) -> list[int]:
  """Rows of the latest items whose slots fit into the budget."""
  return fit_slots(prompt_rows(slate, context, style), run.config.compressor.budget, run.config.compressor.slots.per_item)


def _item_arrays(context, style) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens and mask `[N, T]` of every item as histories show it, and its code tokens `[N, levels]`."""
  vocabulary = context.vocabulary
  rows = range(len(context.catalogue))
  listed = [context.item_tokens(row, style.history_fields, style) for row in rows]
  tokens = np.full((len(listed), max(map(len, listed))), vocabulary.pad_id, np.int32)
  for row, of in enumerate(listed):
    tokens[row, : len(of)] = of
  lengths = np.array([[len(of)] for of in listed])
  mask = (np.arange(tokens.shape[1]) < lengths).astype(np.int32)
  return tokens, mask, np.array([vocabulary.sid_tokens(context.codes[row]) for row in rows], np.int32)


def _encode_all(encoder, params, table, items) -> np.ndarray:
  """Memory `[N * m, D]` of the whole catalogue."""
  encode = jax.jit(lambda *of: encode_items(encoder, params, table, *of))
  size = len(items[0])
  parts = []
  for start in range(0, size, _ENCODED):
    rows = np.arange(start, start + _ENCODED) % size  # the last part is filled up, so that one shape is compiled
    part = np.asarray(encode(*(of[rows] for of in items)))
    parts.append(part[: (size - start) * encoder.slots])
  return np.concatenate(parts)


def _train(run, encoder, policy, items, context, style, progress, stop):
  options = run.config.compressor.slots
  slates = load_slates(run, context.catalogue, "train")
  decoder, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  optimizer = make_optimizer(OptimizerConfig(**options.optimizer), options.steps)
  features = policy["embedding"].shape[1]
  state, shardings = init_sharded(
    lambda key: init_state(init_encoder(encoder, key, features), optimizer), jax.random.fold_in(stage_key(run, "compress"), 1), mesh
  )
  constraint = slate_constraint(run, context.vocabulary)
  compiled = jax.jit(
    make_slot_update(decoder, encoder, optimizer, constraint),
    in_shardings=(shardings, batch_sharding(mesh), None),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
  )

  def update(state, batch):
    with jax.set_mesh(mesh):
      return compiled(state, to_global(batch, mesh), policy)

  position = draw_slates(run, slates, options.batch_size)
  get_batch = _make_get_batch(run, slates, decoder, policy, mesh, items, context, style, position, constraint)
  return train(
    run,
    "compress",
    state,
    update,
    get_batch,
    position=position,
    options=options,
    name="slots",
    label="compress (slots)",
    progress=progress,
    stop=stop,
  ).params


def _make_get_batch(run, slates, decoder, policy, mesh, items, context, style, position, constraint):
  """Builds `get_batch(state)`: the policy answers full prompts of shuffled slates, and the same prompts are written with slots."""
  options, vocabulary = run.config.compressor.slots, context.vocabulary
  generate = make_generate(
    decoder,
    group=1,
    max_new_tokens=run.config.rl.max_new_tokens,
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    constraint=constraint,
  )
  sampling = Sampling.create(options.temperature)
  most_items = max(len(_latest(run, slate, context, style)) for slate in slates)
  local = options.batch_size // jax.process_count()
  in_order = [np.arange(len(slate.candidates)) for slate in slates]
  bare = render_prompts(slates, in_order, context, style, histories=[[]] * len(slates)).tokens.shape[1]
  short_length = bare + most_items * options.per_item
  next_prompts = make_next_prompts(run, "shuffled", slates, context, style, position)

  def get_batch(state):
    _, chosen, shown, full = next_prompts()
    key = jax.random.fold_in(stage_key(run, "compress"), int(state.step))
    tokens, mask, references = to_global((full.tokens, full.mask, full.references), mesh)
    with jax.set_mesh(mesh):
      rollout = to_local(generate(policy, tokens, mask, key, sampling, None, references), mesh)

    rows = np.zeros((len(chosen), most_items), np.int64)
    histories = []
    for p, slate in enumerate(chosen):
      latest = _latest(run, slate, context, style)
      rows[p, : len(latest)] = latest
      first = (jax.process_index() * local + p) * most_items
      histories.append(slot_ids(np.arange(first, first + len(latest)), options.per_item).tolist())
    short = render_prompts(chosen, shown, context, style, length=short_length, histories=histories)
    item_tokens, item_mask, sid_tokens = (of[rows] for of in items)
    batch = SlotBatch(
      prompts=full.tokens,
      prompt_mask=full.mask,
      short=short.tokens,
      short_mask=short.mask,
      completions=rollout.completions[:, 0],
      completion_mask=rollout.completion_mask[:, 0].astype(np.int32),
      item_tokens=item_tokens,
      item_mask=item_mask,
      sid_tokens=sid_tokens,
    )
    return batch, {}

  return get_batch
