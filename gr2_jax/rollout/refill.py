"""Continuous refill: a queue of prompts passes through a fixed number of lanes, in one program of static shapes.

Prompts that are answered make room for the next ones. Lanes are whole prompts and not single rows, since the prefix is then read once for
all rows of a prompt and merged attention keeps its form; that a long completion holds up its group is answered by fewer rows than
completions (`RolloutConfig.rows`). Rows that pick any prompt of a window would be a little fuller still, and would each read a whole
prefix at every step, as decoding without a shared prefix does.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.models.cache import Prefix
from gr2_jax.rollout.generate import Decoding, Lanes, Rollout, RolloutConfig, begin, decode_while, generate, start_decoding, to_rollout
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.training.mesh import batch_parts, constrain


class _Queue(NamedTuple):
  """Loop state: lanes as they are decoded, the prompt `[S]` that each holds (P or above: none), how many prompts were taken, and what is
  finished of `tokens`, `log_probs`, `entropy [P, G, Lc]`.
  """

  decoding: Decoding
  prompt: jax.Array
  taken: jax.Array
  finished: tuple[jax.Array, ...]


def _store(queue: _Queue, lane: jax.Array) -> _Queue:
  """Write the completions of lanes away, at their prompts."""
  lanes = queue.decoding.lanes
  arrays = (lanes.tokens, lanes.log_probs, lanes.entropy)
  finished = (all_.at[queue.prompt[lane]].set(x[lane], mode="drop") for all_, x in zip(queue.finished, arrays, strict=True))
  return queue._replace(finished=tuple(finished))


def _put(lanes: Lanes, new: Lanes, lane: jax.Array) -> Lanes:
  """Replace the lanes `lane [r]` by new ones."""

  def put_layers(x: jax.Array, y: jax.Array) -> jax.Array:
    return constrain(x.at[:, lane].set(y), "layers", "batch", "seq", "kv_heads", "head_dim")

  old, prefix = lanes.prefix, new.prefix
  prefix = Prefix(
    k=put_layers(old.k, prefix.k),
    v=put_layers(old.v, prefix.v),
    mask=old.mask.at[lane].set(prefix.mask),
    positions=old.positions.at[lane].set(prefix.positions),
  )
  _, *old_rest = lanes
  _, *new_rest = new
  return Lanes(prefix, *jax.tree.map(lambda x, y: x.at[lane].set(y), old_rest, new_rest))


def _refill_size(lanes: int) -> int:
  """How many lanes are filled at a time: a quarter, so that prompts are computed in batches and few lanes wait for it."""
  parts = batch_parts()
  if lanes % parts:
    raise ValueError(f"lanes: {lanes} do not divide over the {parts} parts of the mesh (data x fsdp); use a multiple")
  return -(-max(lanes // 4, 1) // parts) * parts


def generate_queue(
  config: RolloutConfig,
  num_lanes: int | None,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  key: jax.Array,
  sampling: Sampling,
  *,
  row_ids: jax.Array | None = None,
  references: jax.Array | None = None,
) -> Rollout:
  """The completions of `generate`, decoded `num_lanes` prompts at a time (None, or not fewer than there are prompts: all at once).

  Each prompt is computed once, a quarter of the lanes at a time, as soon as so many are free.
  """
  num_prompts = len(prompts)
  if num_lanes is None or num_lanes >= num_prompts:
    return generate(config, params, prompts, prompt_mask, key, sampling, row_ids=row_ids, references=references)
  size = _refill_size(num_lanes)
  queue = (prompts, prompt_mask, references, jnp.arange(num_prompts) if row_ids is None else row_ids)

  def begin_at(place: jax.Array) -> Lanes:
    tokens, mask, named, ids = jax.tree.map(lambda x: x.at[place].get(mode="clip"), queue)
    lanes = begin(config, params, tokens, mask, named, ids, key, sampling)
    return lanes._replace(begun=jnp.where(place < num_prompts, 0, config.group))  # nothing to do for places past the end

  def is_due(lanes: Lanes, taken: jax.Array) -> jax.Array:
    return (taken < num_prompts) & ((~lanes.busy).sum() >= size)

  def refill(state: _Queue) -> _Queue:
    decoding = state.decoding
    lane = jnp.nonzero(~decoding.lanes.busy, size=size)[0]
    state = _store(state, lane)
    place = state.taken + jnp.arange(size)
    decoding = decoding._replace(lanes=_put(decoding.lanes, begin_at(place), lane))
    taken = state.taken + size
    decoding = decode_while(lambda lanes: lanes.busy.any() & ~is_due(lanes, taken), config, params, sampling, decoding)
    return state._replace(decoding=decoding, prompt=state.prompt.at[lane].set(place), taken=taken)

  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(begin_at, jnp.arange(num_lanes)))
  empty = empty._replace(begun=jnp.full(num_lanes, config.group))
  shape = (num_prompts, config.group, config.max_new_tokens)
  state = _Queue(
    decoding=start_decoding(config, empty),
    prompt=jnp.full(num_lanes, num_prompts),
    taken=jnp.int32(0),
    finished=(jnp.full(shape, config.pad_id, jnp.int32), jnp.zeros(shape), jnp.zeros(shape)),
  )
  state = jax.lax.while_loop(lambda state: state.taken < num_prompts, refill, state)
  state = _store(state, jnp.arange(num_lanes))
  tokens, log_probs, entropy = state.finished
  return to_rollout(config, prompts, prompt_mask, tokens, log_probs, entropy, state.decoding.steps * empty.member.size)


def make_generate_queue(config: RolloutConfig, lanes: int | None) -> Callable[..., Rollout]:
  """Compile `generate_queue` for `lanes` prompts at a time (None: all), to be called as `make_generate`'s.

  A new number of prompts compiles again. Raises ValueError for less than one lane.
  """
  if lanes is not None and lanes < 1:
    raise ValueError(f"lanes must be at least 1, or None (all prompts at once), got {lanes}")
  return jax.jit(functools.partial(generate_queue, config, lanes))
