"""Group rollouts: every prompt is computed once, and its completions are decoded in one loop on the device.

A prompt that is being answered holds a lane, with its keys and values and a few rows of the decoder's batch, through which its G
completions pass one after another. With as many rows as completions all start together; with fewer, a row that draws EOS goes on with the
next one, so that a long completion keeps one row waiting and not all of them. Rows of a lane are neighbours, as the shared prefix asks for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.cache import Cache, Prefix, empty_cache, join_prefixes
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.copy_constraint import CopyConstraint
from gr2_jax.rollout.sampling import Sampling, draw_uniforms, sample_tokens
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.rollout.true_facts import TrueFacts
from gr2_jax.training.mesh import constrain

Constraint = SlateConstraint | CopyConstraint  # which tokens may follow, in sampling and in the losses


@struct.dataclass
class Rollout:
  """G completions for each of P prompts.

  `prompts, prompt_mask [P, Lp]`; `completions [P, G, Lc]` with the EOS token kept and pad after it; `completion_mask [P, G, Lc]` True up
  to and including EOS; `behaviour_logps` and `entropy [P, G, Lc]` (float32, nats) of the distribution that each token was drawn from,
  0 where the mask is False; `finished [P, G]` True where EOS came within the limit; `row_steps [P]` decoding steps x rows, in equal shares.
  On the device as it was made, or brought to the host.
  """

  prompts: Any
  prompt_mask: Any
  completions: Any
  completion_mask: Any
  behaviour_logps: Any
  entropy: Any
  finished: Any
  row_steps: Any


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """What a compiled rollout is fixed to: `group` completions a prompt of at most `max_new_tokens` tokens, decoded in `rows` rows a prompt
  (None: one for each completion). EOS is looked for every `check_every` steps. With a
  `SlateConstraint` every answer is a full permutation of the candidates that a prompt's references name.

  Raises ValueError for sizes below 1 and for more rows than completions.
  """

  decoder: Decoder
  group: int
  max_new_tokens: int
  eos_id: int
  pad_id: int
  rows: int | None = None
  check_every: int = 4
  constraint: Constraint | TrueFacts | None = None

  def __post_init__(self) -> None:
    for name in ("group", "max_new_tokens", "check_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
    if self.rows is not None and not 1 <= self.rows <= self.group:
      raise ValueError(f"rows must lie between 1 and the group of {self.group}, or be None (one for each completion), got {self.rows}")

  @classmethod
  def of(cls, decoder: Decoder, vocabulary: Vocabulary, **sizes: Any) -> "RolloutConfig":
    """With the vocabulary's EOS and padding."""
    return cls(decoder, eos_id=vocabulary.eos_id, pad_id=vocabulary.pad_id, **sizes)

  @property
  def rows_per_lane(self) -> int:
    """Rows in which the completions of one prompt are decoded."""
    return self.group if self.rows is None else self.rows


class Lanes(NamedTuple):
  """S prompts that are being answered, R rows each. Completions before `begun [S]` are done, or some row's `member [S, R]`, of which
  `length [S, R]` tokens are written; a row that is not `alive [S, R]` has nothing to write. The others are as in `Rollout`.
  """

  prefix: Prefix
  prompt_lengths: jax.Array
  references: jax.Array | None
  uniforms: jax.Array
  tokens: jax.Array
  log_probs: jax.Array
  entropy: jax.Array
  begun: jax.Array
  member: jax.Array
  length: jax.Array
  alive: jax.Array

  @property
  def busy(self) -> jax.Array:
    """Whether any completion of a lane is not done `[S]`."""
    return self.alive.any(axis=1) | (self.begun < self.tokens.shape[1])


class Decoding(NamedTuple):
  """Loop state of the decoder: lanes, the cache of their rows, and how many steps were run."""

  lanes: Lanes
  cache: Cache
  steps: jax.Array


def prefill(
  decoder: Decoder, params: Any, prompts: jax.Array, prompt_mask: jax.Array, prefix: Prefix | None = None
) -> tuple[jax.Array, Prefix, jax.Array]:
  """One forward pass over left-aligned prompts `[P, Lp]`; with a `prefix` of P rows, whose real tokens come first, over what follows it.

  Returns the hidden state of each prompt's last token `[P, D]`, the keys and values for its group, and prompt lengths `[P]`, both with
  those of the prefix. A row without any token is allowed as filler: what follows it means nothing, and is finite.
  """
  before = jnp.zeros(len(prompts), jnp.int32) if prefix is None else prefix.mask.astype(jnp.int32).sum(axis=1)
  positions = before[:, None] + jnp.arange(prompts.shape[1])
  hidden, (k, v) = decoder.apply({"params": params}, prompts, positions, prompt_mask.astype(jnp.int32), prefix=prefix)
  lengths = prompt_mask.astype(jnp.int32).sum(axis=1)
  last = jnp.maximum(lengths - 1, 0)
  last_hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  read = Prefix(k=k, v=v, mask=prompt_mask > 0, positions=positions)
  return last_hidden, read if prefix is None else join_prefixes(prefix, read), before + lengths


def suffix_cache(decoder: Decoder, rows: int, capacity: int) -> Cache:
  """An empty cache for `rows` suffixes, placed on the mesh like the rows."""
  cache = empty_cache(decoder.config, rows, capacity)

  def place(x: jax.Array) -> jax.Array:
    return constrain(x, "layers", "batch", "seq", "kv_heads", "head_dim")

  return dataclasses.replace(cache, k=place(cache.k), v=place(cache.v))


def _take(array: jax.Array, member: jax.Array, place: jax.Array) -> jax.Array:
  """The elements `[S, n]` of `array [S, G, Lc]` at places of members."""
  return jax.vmap(lambda x, m, p: x[m, p])(array, member, place)


def _draw(
  config: RolloutConfig,
  params: Any,
  lanes: Lanes,
  hidden: jax.Array,
  member: jax.Array,
  place: jax.Array,
  alive: jax.Array,
  sampling: Sampling,
) -> Lanes:
  """Draw the tokens at `place` of completions `member` (both `[S, n]`) from `hidden [S * n, D]`, and write those that are `alive`."""
  logits = config.decoder.apply({"params": params}, hidden, method="logits")
  if config.constraint is not None:
    assert lanes.references is not None, "a constraint reads the references of its prompts"
    written = jnp.take_along_axis(lanes.tokens, member[:, :, None], axis=1).reshape(-1, config.max_new_tokens)
    references = jnp.repeat(lanes.references, member.shape[1], axis=0)
    logits = config.constraint.apply(logits, config.constraint.next_state(written, place.reshape(-1), references))
  drawn = sample_tokens(logits, _take(lanes.uniforms, member, place).reshape(-1), sampling)
  target = jnp.where(alive, member, config.group)  # out of bounds, where nothing is written

  def write(array: jax.Array, values: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, m, p, v: x.at[m, p].set(v, mode="drop"))(array, target, place, values.reshape(member.shape))

  return lanes._replace(
    tokens=write(lanes.tokens, drawn.tokens),
    log_probs=write(lanes.log_probs, drawn.log_probs),
    entropy=write(lanes.entropy, drawn.entropy),
  )


def begin(
  config: RolloutConfig,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  references: jax.Array | None,
  row_ids: jax.Array,
  key: jax.Array,
  sampling: Sampling,
  *,
  prefix: Prefix | None = None,
) -> Lanes:
  """Prefill prompts `[S, Lp]` into lanes and draw the first token of all their completions, which costs no step of the decoder."""
  num_lanes, group = len(prompts), config.group
  ids = (row_ids[:, None] * group + jnp.arange(group)).reshape(-1)
  uniforms = draw_uniforms(key, ids, config.max_new_tokens).reshape(num_lanes, group, -1)
  last_hidden, prefix, prompt_lengths = prefill(config.decoder, params, prompts, prompt_mask, prefix)
  per_row = jnp.zeros((num_lanes, config.rows_per_lane), jnp.int32)
  lanes = Lanes(
    prefix=prefix,
    prompt_lengths=prompt_lengths,
    references=references,
    uniforms=uniforms,
    tokens=jnp.full(uniforms.shape, config.pad_id, jnp.int32),
    log_probs=jnp.zeros_like(uniforms),
    entropy=jnp.zeros_like(uniforms),
    begun=jnp.zeros(num_lanes, jnp.int32),
    member=per_row,
    length=per_row,
    alive=per_row > 0,
  )
  member = jnp.broadcast_to(jnp.arange(group), (num_lanes, group))
  # Hidden states are repeated, not logits: XLA's CPU backend would fuse the repeat into the argmax over the vocabulary, and LLVM then
  # compiles for hours when the vocabulary is tiny.
  hidden = jnp.repeat(last_hidden, group, axis=0)
  return _draw(config, params, lanes, hidden, member, jnp.zeros_like(member), jnp.ones_like(member, bool), sampling)


def _take_members(config: RolloutConfig, lanes: Lanes) -> tuple[Lanes, jax.Array]:
  """Give rows that have nothing to write the next completions of their lane; also returns which rows begin one `[S, R]`."""
  vacant = ~lanes.alive
  following = lanes.begun[:, None] + jnp.cumsum(vacant, axis=1) - 1
  fresh = vacant & (following < config.group)
  member, length = jnp.where(fresh, following, lanes.member), jnp.where(fresh, 1, lanes.length)
  goes_on = (lanes.tokens[:, :, 0] != config.eos_id) & (config.max_new_tokens > 1)
  alive = lanes.alive | (fresh & jnp.take_along_axis(goes_on, member, axis=1))
  return lanes._replace(begun=lanes.begun + fresh.sum(axis=1), member=member, length=length, alive=alive), fresh


def _step(config: RolloutConfig, params: Any, sampling: Sampling, state: Decoding) -> Decoding:
  """One token more for every row that is alive.

  The cache is a ring: all rows write at one place, which no scatter is needed for, and a row's keys may lie anywhere in it, since they are
  rotated already and its mask tells them from those of the completion before.
  """
  lanes, fresh = _take_members(config, state.lanes)
  cache = dataclasses.replace(
    state.cache, mask=state.cache.mask & ~fresh.reshape(-1, 1), length=state.cache.length % state.cache.mask.shape[1]
  )
  token = _take(lanes.tokens, lanes.member, lanes.length - 1)
  positions = lanes.prompt_lengths[:, None] + lanes.length - 1
  token, positions, seen = (x.reshape(-1, 1) for x in (token, positions, lanes.alive.astype(jnp.int32)))
  hidden, cache = config.decoder.apply({"params": params}, token, positions, seen, prefix=lanes.prefix, cache=cache)
  lanes = _draw(config, params, lanes, hidden[:, 0], lanes.member, lanes.length, lanes.alive, sampling)
  ended = _take(lanes.tokens, lanes.member, lanes.length) == config.eos_id
  length = lanes.length + lanes.alive
  alive = lanes.alive & ~ended & (length < config.max_new_tokens)
  return Decoding(lanes._replace(length=length, alive=alive), cache, state.steps + 1)


def decode_while(go_on: Callable[[Lanes], jax.Array], config: RolloutConfig, params: Any, sampling: Sampling, state: Decoding) -> Decoding:
  """Decode as long as `go_on(lanes)`, which is asked every `check_every` steps."""

  def steps(state: Decoding) -> Decoding:
    lanes = state.lanes
    last_rows = jnp.max(jnp.where(lanes.alive, config.max_new_tokens - lanes.length, 0))
    number = jnp.where((lanes.begun < config.group).any(), config.check_every, jnp.minimum(last_rows, config.check_every))
    return jax.lax.fori_loop(0, number, lambda _, state: _step(config, params, sampling, state), state)

  return jax.lax.while_loop(lambda state: go_on(state.lanes), steps, state)


def start_decoding(config: RolloutConfig, lanes: Lanes) -> Decoding:
  """The state before the first step, with an empty cache."""
  # The last token drawn is never fed back, hence one place less; at least one, since arrays of size 0 break the loop's carry.
  cache = suffix_cache(config.decoder, lanes.member.size, max(config.max_new_tokens - 1, 1))
  return Decoding(lanes, cache, jnp.int32(0))


def to_rollout(
  config: RolloutConfig,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  tokens: jax.Array,
  log_probs: jax.Array,
  entropy: jax.Array,
  row_steps: jax.Array,
) -> Rollout:
  """Completions `[P, G, Lc]`, written up to EOS or the limit, as a `Rollout`; `row_steps` of all prompts."""
  ends = tokens == config.eos_id
  return Rollout(
    prompts=prompts,
    prompt_mask=prompt_mask,
    completions=tokens,
    completion_mask=jnp.cumsum(ends, axis=-1) - ends == 0,
    behaviour_logps=log_probs,
    entropy=entropy,
    finished=ends.any(axis=-1),
    row_steps=jnp.full(len(prompts), row_steps / len(prompts), jnp.float32),
  )


def generate(
  config: RolloutConfig,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  key: jax.Array,
  sampling: Sampling,
  *,
  row_ids: jax.Array | None = None,
  references: jax.Array | None = None,
  prefix: Prefix | None = None,
) -> Rollout:
  """Decode a group of completions for each prompt `[P, Lp]`, all prompts at once (`refill.generate_queue`: a few at a time).

  A prompt is prefilled once and shared by its group; completions have caches of their own. `row_ids [P]` name the prompts (default
  0..P-1): completion g of prompt p draws with keys of (row_ids[p] * group + g, place in the completion), so it depends neither on how
  prompts are batched nor on the rows. `references [P, K, L]` are the constraint's. With a `prefix` of P rows the
  prompts are what follows it (see `prefill`).
  """
  row_ids = jnp.arange(len(prompts)) if row_ids is None else row_ids
  lanes = begin(config, params, prompts, prompt_mask, references, row_ids, key, sampling, prefix=prefix)
  state = decode_while(lambda lanes: lanes.busy.any(), config, params, sampling, start_decoding(config, lanes))
  lanes, row_steps = state.lanes, state.steps * lanes.member.size
  return to_rollout(config, prompts, prompt_mask, lanes.tokens, lanes.log_probs, lanes.entropy, row_steps)


def make_generate(config: RolloutConfig) -> Callable[..., Rollout]:
  """Compile `generate`: `(params, prompts, prompt_mask, key, sampling, *, row_ids=None, references=None) -> Rollout`.

  Only a new prompt shape compiles again.
  """
  return jax.jit(functools.partial(generate, config))
