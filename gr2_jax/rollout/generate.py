"""Group rollouts: every prompt is computed once, and its completions are decoded in one loop on the device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gr2_jax.models.cache import Cache, Prefix, empty_cache
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.sampling import Sampling, draw_uniforms, sample_tokens
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.mesh import constrain


@struct.dataclass
class Rollout:
  """G completions for each of P prompts.

  `prompts, prompt_mask [P, Lp]`; `completions [P, G, Lc]` with the EOS token kept and pad after it; `completion_mask [P, G, Lc]` True up
  to and including EOS; `behaviour_logps` and `entropy [P, G, Lc]` (float32, nats) of the distribution that each token was drawn from,
  0 where the mask is False; `finished [P, G]` True where EOS came within the limit.
  """

  prompts: jax.Array
  prompt_mask: jax.Array
  completions: jax.Array
  completion_mask: jax.Array
  behaviour_logps: jax.Array
  entropy: jax.Array
  finished: jax.Array


class _Decoding(NamedTuple):
  """Loop state: `length` tokens of every row are written, rows where `done` have drawn EOS."""

  cache: Cache
  length: jax.Array
  done: jax.Array
  tokens: jax.Array
  mask: jax.Array
  log_probs: jax.Array
  entropy: jax.Array


def prefill(decoder: Decoder, params, prompts: jax.Array, prompt_mask: jax.Array) -> tuple[jax.Array, Prefix, jax.Array]:
  """One forward pass over left-aligned prompts `[P, Lp]`.

  Returns the hidden state of each prompt's last token `[P, D]`, the keys and values for its group, and prompt lengths `[P]`. A row
  without any token is allowed as filler: what follows it means nothing, and is finite.
  """
  positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
  hidden, (k, v) = decoder.apply({"params": params}, prompts, positions, prompt_mask.astype(jnp.int32))
  lengths = prompt_mask.astype(jnp.int32).sum(axis=1)
  last = jnp.maximum(lengths - 1, 0)
  last_hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return last_hidden, Prefix(k=k, v=v, mask=prompt_mask > 0), lengths


def suffix_cache(decoder: Decoder, rows: int, capacity: int) -> Cache:
  """An empty cache for `rows` suffixes, placed on the mesh like the rows."""
  cache = empty_cache(decoder.config, rows, capacity)

  def place(x):
    return constrain(x, "layers", "batch", "seq", "kv_heads", "head_dim")

  return cache.replace(k=place(cache.k), v=place(cache.v))


def _append(state: _Decoding, logits: jax.Array, uniforms: jax.Array, sampling: Sampling, eos_id: int, pad_id: int) -> _Decoding:
  """Draw the next token of every row; rows that are done get pad, masked."""
  drawn = sample_tokens(logits, jax.lax.dynamic_index_in_dim(uniforms, state.length, axis=1, keepdims=False), sampling)
  alive = ~state.done

  def write(array, value):
    return jax.lax.dynamic_update_slice_in_dim(array, value[:, None], state.length, axis=1)

  return state._replace(
    length=state.length + 1,
    done=state.done | (drawn.tokens == eos_id),
    tokens=write(state.tokens, jnp.where(alive, drawn.tokens, pad_id)),
    mask=write(state.mask, alive),
    log_probs=write(state.log_probs, jnp.where(alive, drawn.log_probs, 0.0)),
    entropy=write(state.entropy, jnp.where(alive, drawn.entropy, 0.0)),
  )


def generate(
  decoder: Decoder,
  params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  key: jax.Array,
  sampling: Sampling,
  row_ids: jax.Array | None = None,
  references: jax.Array | None = None,
  *,
  group: int,
  max_new_tokens: int,
  eos_id: int,
  pad_id: int,
  check_every: int = 4,
  constraint: SlateConstraint | None = None,
) -> Rollout:
  """Decode `group` completions of at most `max_new_tokens` tokens for each prompt `[P, Lp]`.

  A prompt is prefilled once and shared by its group; suffixes have caches of their own. The loop looks for EOS every `check_every`
  steps and ends when all rows have drawn it. `row_ids [P]` name the prompts (default 0..P-1): completion g of prompt p draws with
  keys of (row_ids[p] * group + g, place in the completion), so it doesn't depend on how prompts are batched.
  With a `constraint` every answer is a full permutation of the candidates that `references [P, K, L]` name (see `SlateConstraint`).
  """
  num_prompts = prompts.shape[0]
  rows = num_prompts * group
  row_ids = jnp.arange(num_prompts) if row_ids is None else row_ids
  uniforms = draw_uniforms(key, (row_ids[:, None] * group + jnp.arange(group)).reshape(rows), max_new_tokens)
  last_hidden, prefix, prompt_lengths = prefill(decoder, params, prompts, prompt_mask)
  prompt_lengths = jnp.repeat(prompt_lengths, group)

  if constraint is not None:
    references = jnp.repeat(references, group, axis=0)

  def to_logits(hidden, state):
    logits = decoder.apply({"params": params}, hidden, method="logits")
    return logits if constraint is None else constraint.apply(logits, constraint.next_state(state.tokens, state.length, references))

  state = _Decoding(
    # The last token drawn is never fed back, hence one place less; at least one, since arrays of size 0 break the loop's carry.
    cache=suffix_cache(decoder, rows, max(max_new_tokens - 1, 1)),
    length=jnp.int32(0),
    done=jnp.zeros(rows, bool),
    tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
    mask=jnp.zeros((rows, max_new_tokens), bool),
    log_probs=jnp.zeros((rows, max_new_tokens), jnp.float32),
    entropy=jnp.zeros((rows, max_new_tokens), jnp.float32),
  )
  # Hidden states are repeated, not logits: XLA's CPU backend would fuse the repeat into the argmax over the vocabulary, and LLVM then
  # compiles for hours when the vocabulary is tiny.
  state = _append(state, to_logits(jnp.repeat(last_hidden, group, axis=0), state), uniforms, sampling, eos_id, pad_id)

  def step(_, state: _Decoding) -> _Decoding:
    place = state.length - 1
    token = jax.lax.dynamic_slice_in_dim(state.tokens, place, 1, axis=1)
    seen = jax.lax.dynamic_slice_in_dim(state.mask, place, 1, axis=1)
    positions = (prompt_lengths + place)[:, None]
    hidden, cache = decoder.apply({"params": params}, token, positions, seen.astype(jnp.int32), prefix=prefix, cache=state.cache)
    return _append(state._replace(cache=cache), to_logits(hidden[:, 0], state), uniforms, sampling, eos_id, pad_id)

  def steps(state: _Decoding) -> _Decoding:
    return jax.lax.fori_loop(state.length, jnp.minimum(state.length + check_every, max_new_tokens), step, state)

  state = jax.lax.while_loop(lambda state: (state.length < max_new_tokens) & ~state.done.all(), steps, state)

  def to_groups(x):
    return x.reshape(num_prompts, group, *x.shape[1:])

  return Rollout(
    prompts=prompts,
    prompt_mask=prompt_mask,
    completions=to_groups(state.tokens),
    completion_mask=to_groups(state.mask),
    behaviour_logps=to_groups(state.log_probs),
    entropy=to_groups(state.entropy),
    finished=to_groups(state.done),
  )


def make_generate(
  decoder: Decoder,
  *,
  group: int,
  max_new_tokens: int,
  eos_id: int,
  pad_id: int,
  check_every: int = 4,
  constraint: SlateConstraint | None = None,
) -> Callable[..., Rollout]:
  """Compile `generate` for fixed sizes: `(params, prompts, prompt_mask, key, sampling, row_ids=None, references=None) -> Rollout`.

  Only a new prompt shape compiles again. Raises ValueError for sizes below 1.
  """
  for name, value in {"group": group, "max_new_tokens": max_new_tokens, "check_every": check_every}.items():
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")

  @jax.jit
  def run(params, prompts, prompt_mask, key, sampling, row_ids=None, references=None) -> Rollout:
    return generate(
      decoder,
      params,
      prompts,
      prompt_mask,
      key,
      sampling,
      row_ids,
      references,
      group=group,
      max_new_tokens=max_new_tokens,
      eos_id=eos_id,
      pad_id=pad_id,
      check_every=check_every,
      constraint=constraint,
    )

  return run
