"""Scored answers after a reasoning: tokens decoded behind a packed slate, and the scores that its candidates get behind them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.cache import Prefix, join_prefixes, repeat_prefix
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.completions import make_to_logits
from gr2_jax.rollout.generate import Rollout, RolloutConfig, generate
from gr2_jax.rollout.legal_tokens import TokenState
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.true_facts import TrueFacts


class Thoughts(NamedTuple):
  """G reasonings about each of P slates, up to and with the token that ends them: `tokens, mask [P, G, L]`."""

  tokens: Any
  mask: Any


class ThoughtStates(NamedTuple):
  """Of G reasonings: `hidden [P, G, L, D]` that predict their tokens, and the candidates' `scores [P, G, K]` after each."""

  hidden: jax.Array
  scores: jax.Array


class ThoughtScores(NamedTuple):
  """Of G reasonings: `log_probs, entropy [P, G, L]` of their tokens (nats), and the candidates' `scores [P, G, K]` after each."""

  log_probs: jax.Array
  entropy: jax.Array
  scores: jax.Array


def make_think(
  model: SlateScorer, vocabulary: Vocabulary, *, group: int, max_new_tokens: int, constraint: TrueFacts | None = None
) -> Callable[[Any, PackedSlates, jax.Array, jax.Array, Sampling], Rollout]:
  """Builds `think(params, slates, edges, key, sampling) -> Rollout` of `group` reasonings a slate; compile it.

  A reasoning ends with the token `/think`, or at the limit; the slate is read once for all of them. `constraint`: what it may say.
  """
  decoder = Decoder(model.config)
  sizes = {"group": group, "max_new_tokens": max_new_tokens, "eos_id": vocabulary.special("/think"), "pad_id": vocabulary.pad_id}
  config = RolloutConfig(decoder, **sizes, constraint=constraint)
  opening = vocabulary.special("think")

  def think(params: Any, slates: PackedSlates, edges: jax.Array, key: jax.Array, sampling: Sampling) -> Rollout:
    prefix = model.apply({"params": params}, slates, edges, method="read")
    prompts = jnp.full((len(slates.real), 1), opening, jnp.int32)
    references = None if constraint is None else constraint.references(slates, edges)
    return generate(config, params["decoder"], prompts, jnp.ones_like(prompts), key, sampling, references=references, prefix=prefix)

  return think


def follow_thoughts(
  model: SlateScorer,
  params: Any,
  slates: PackedSlates,
  edges: jax.Array,
  thoughts: Thoughts,
  opening: int,
  *,
  deterministic: bool = True,
  key: jax.Array | None = None,
) -> ThoughtStates:
  """What stands behind the tokens of reasonings that were written, by the policy itself or by another; differentiable.

  `opening`: the token `think`. The slate's keys and values are computed once and shared by its reasonings; gradients flow back through
  them. `key` is for dropout, of what is packed alone.
  """
  rngs = {} if key is None else {"dropout": key}
  call: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
  prefix = model.apply({"params": params}, slates, edges, method="read", **call)
  slots, group, length = thoughts.tokens.shape
  mask = thoughts.mask.reshape(-1, length) > 0
  tokens = jnp.concatenate([jnp.full((slots * group, 1), opening, jnp.int32), thoughts.tokens.reshape(-1, length)], axis=1)
  own = jnp.concatenate([jnp.ones((slots * group, 1), bool), mask], axis=1)
  before = jnp.repeat(prefix.mask.sum(axis=1), group)
  places = before[:, None] + jnp.arange(length + 1)
  decoder = Decoder(model.config)
  hidden, (k, v) = decoder.apply({"params": params["decoder"]}, tokens, places, own.astype(jnp.int32), prefix=prefix)
  thought = join_prefixes(repeat_prefix(prefix, group), Prefix(k=k, v=v, mask=own, positions=places))
  scores = model.apply({"params": params}, slates, edges, thought, before + own.sum(axis=1), method="answer", **call)
  return ThoughtStates(*(x.reshape(slots, group, *x.shape[1:]) for x in (hidden[:, :-1], scores)))


def score_thoughts(
  model: SlateScorer,
  params: Any,
  slates: PackedSlates,
  edges: jax.Array,
  thoughts: Thoughts,
  opening: int,
  *,
  constraint: TrueFacts | None = None,
  **call: Any,
) -> ThoughtScores:
  """What the policy makes of reasonings, see `follow_thoughts`; differentiable. `constraint`: under which they are drawn."""
  states = follow_thoughts(model, params, slates, edges, thoughts, opening, **call)
  legal = legal_thoughts(constraint, slates, edges, thoughts)
  terms = token_log_probs(to_token_logits(model, params, constraint), states.hidden, thoughts.tokens, *legal)
  log_probs, entropy = (jnp.where(thoughts.mask > 0, x, 0.0) for x in terms)
  return ThoughtScores(log_probs, entropy, states.scores)


def to_token_logits(model: SlateScorer, params: Any, constraint: TrueFacts | None = None) -> Callable[..., jax.Array]:
  """The logits `[n, V]` of a reasoning's tokens, of hidden states `[n, D]` and, under a constraint, what `legal_thoughts` gives."""
  return make_to_logits(Decoder(model.config), params["decoder"], constraint)


def legal_thoughts(constraint: TrueFacts | None, slates: PackedSlates, edges: jax.Array, thoughts: Thoughts) -> tuple[TokenState, ...]:
  """What the logits of `to_token_logits` read beside hidden states: nothing, or the state of every place of the reasonings."""
  return () if constraint is None else (constraint.states(thoughts.tokens, constraint.references(slates, edges)),)
