"""Continuous refill: a queue of prompts passes through a fixed number of slots, in one program of static shapes.

Prompts that are answered make room for the next ones. Slots are whole prompts and not single rows, since the prefix is then read once for
all rows of a prompt and merged attention keeps its form; that a long completion holds up its group is answered by fewer rows than
completions (`RolloutConfig.rows`). Rows that pick any prompt of a window would be a little fuller still, and would each read a whole
prefix at every step, as decoding without a shared prefix does.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import Decoding, Rollout, RolloutConfig, Slots, begin, decode_while, generate, start_decoding, to_rollout
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.training.mesh import batch_parts, constrain


class _Queue(NamedTuple):
  """Loop state: slots as they are decoded, the prompt `[S]` that each holds (P or above: none), how many prompts were taken, and what is
  finished of `tokens`, `log_probs`, `entropy [P, G, Lc]`.
  """

  decoding: Decoding
  prompt: jax.Array
  taken: jax.Array
  finished: tuple[jax.Array, ...]


def _store(queue: _Queue, slot: jax.Array) -> _Queue:
  """Write the completions of slots away, at their prompts."""
  slots = queue.decoding.slots
  arrays = (slots.tokens, slots.log_probs, slots.entropy)
  finished = (all_.at[queue.prompt[slot]].set(x[slot], mode="drop") for all_, x in zip(queue.finished, arrays, strict=True))
  return queue._replace(finished=tuple(finished))


def _put(slots: Slots, new: Slots, slot: jax.Array) -> Slots:
  """Replace the slots `slot [r]` by new ones."""

  def put_layers(x, y):
    return constrain(x.at[:, slot].set(y), "layers", "batch", "seq", "kv_heads", "head_dim")

  old, prefix = slots.prefix, new.prefix
  prefix = old.replace(k=put_layers(old.k, prefix.k), v=put_layers(old.v, prefix.v), mask=old.mask.at[slot].set(prefix.mask))
  put = jax.tree.map(lambda x, y: x.at[slot].set(y), slots._replace(prefix=None), new._replace(prefix=None))
  return put._replace(prefix=prefix)


def _refill_size(slots: int) -> int:
  """How many slots are filled at a time: a quarter, so that prompts are computed in batches and few slots wait for it."""
  parts = batch_parts()
  if slots % parts:
    raise ValueError(f"slots: {slots} do not divide over the {parts} parts of the mesh (data x fsdp); use a multiple")
  return -(-max(slots // 4, 1) // parts) * parts


def generate_queue(
  config: RolloutConfig,
  num_slots: int,
  params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  key: jax.Array,
  sampling: Sampling,
  row_ids: jax.Array | None = None,
  references: jax.Array | None = None,
) -> Rollout:
  """The completions of `generate`, decoded `num_slots` prompts at a time (0, or not fewer than there are prompts: all at once).

  Each prompt is computed once, a quarter of the slots at a time, as soon as so many are free.
  """
  num_prompts = len(prompts)
  if not 0 < num_slots < num_prompts:
    return generate(config, params, prompts, prompt_mask, key, sampling, row_ids, references)
  size = _refill_size(num_slots)
  queue = (prompts, prompt_mask, references, jnp.arange(num_prompts) if row_ids is None else row_ids)

  def begin_at(place):
    chosen = jax.tree.map(lambda x: x.at[place].get(mode="clip"), queue)
    slots = begin(config, params, *chosen, key, sampling)
    return slots._replace(begun=jnp.where(place < num_prompts, 0, config.group))  # nothing to do for places past the end

  def is_due(slots, taken):
    return (taken < num_prompts) & ((~slots.busy).sum() >= size)

  def refill(state: _Queue) -> _Queue:
    decoding = state.decoding
    slot = jnp.nonzero(~decoding.slots.busy, size=size)[0]
    state = _store(state, slot)
    place = state.taken + jnp.arange(size)
    decoding = decoding._replace(slots=_put(decoding.slots, begin_at(place), slot))
    taken = state.taken + size
    decoding = decode_while(lambda slots: slots.busy.any() & ~is_due(slots, taken), config, params, sampling, decoding)
    return state._replace(decoding=decoding, prompt=state.prompt.at[slot].set(place), taken=taken)

  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(begin_at, jnp.arange(num_slots)))
  empty = empty._replace(begun=jnp.full(num_slots, config.group))
  shape = (num_prompts, config.group, config.max_new_tokens)
  state = _Queue(
    decoding=start_decoding(config, empty),
    prompt=jnp.full(num_slots, num_prompts),
    taken=jnp.int32(0),
    finished=(jnp.full(shape, config.pad_id, jnp.int32), jnp.zeros(shape), jnp.zeros(shape)),
  )
  state = jax.lax.while_loop(lambda state: state.taken < num_prompts, refill, state)
  state = _store(state, jnp.arange(num_slots))
  return to_rollout(config, prompts, prompt_mask, *state.finished, state.decoding.steps * empty.member.size)


def make_generate_queue(decoder: Decoder, *, slots: int, **sizes) -> Callable[..., Rollout]:
  """Compile `generate_queue` for a number of slots and the sizes of a `RolloutConfig`, to be called as `make_generate`'s.

  A new number of prompts compiles again. Raises ValueError for a negative number of slots.
  """
  if slots < 0:
    raise ValueError(f"slots must be at least 0 (all prompts at once), got {slots}")
  return jax.jit(functools.partial(generate_queue, RolloutConfig(decoder, **sizes), slots))
