"""Completions to prompts as an update reads them: their hidden states and log-probabilities, each prompt computed once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.cache import Prefix
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.generate import Constraint, prefill
from gr2_jax.rollout.layout import Layout
from gr2_jax.rollout.legal_tokens import TokenState
from gr2_jax.rollout.true_facts import TrueFacts


def completion_hidden(
  decoder: Decoder,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  completions: jax.Array,
  completion_mask: jax.Array,
  prefix: Prefix | None = None,
  layout: Layout | None = None,
) -> jax.Array:
  """Hidden states that predict the tokens of completions `[P, G, Lc]` to prompts `[P, Lp]`.

  The completions of a prompt attend to its keys and values, through which their gradients flow back, so that values and gradients are
  those of P * G full sequences. The first token is predicted by the prompt's last hidden state, and the last token is not fed.
  `prefix`: see `prefill`. Without a `layout` every completion has a row of its own, and the result is `[P, G, Lc, D]`. With one they are
  computed in its rows, and the result is `[P, G + R * (Lc - 1), D]`, in the order of `Layout.predicted`.
  """
  num_prompts, group, length = completions.shape
  last_hidden, prefix, prompt_lengths = prefill(decoder, params, prompts, prompt_mask, prefix)
  first = jnp.repeat(last_hidden[:, None], group, axis=1)
  if layout is None:
    first = first[:, :, None]
  if length == 1:
    return first
  if layout is None:
    tokens = completions[:, :, :-1]
    positions = jnp.broadcast_to(prompt_lengths[:, None, None] + jnp.arange(length - 1), tokens.shape)
    segments = completion_mask[:, :, :-1].astype(jnp.int32)
  else:
    tokens = layout.fed(completions)
    positions = prompt_lengths[:, None] + layout.times(length)
    segments = layout.segments(completion_mask)
  rows = (x.reshape(-1, length - 1) for x in (tokens, positions, segments))
  suffix, _ = decoder.apply({"params": params}, *rows, prefix=prefix)
  return jnp.concatenate([first, suffix.reshape(*tokens.shape, -1)], axis=first.ndim - 2)


def make_to_logits(decoder: Decoder, params: Any, constraint: Constraint | TrueFacts | None) -> Callable[..., jax.Array]:
  """`to_logits(hidden [n, D], *legal_states) -> [n, V]`, over the legal tokens where there is a constraint."""

  def to_logits(hidden: jax.Array, *state: TokenState) -> jax.Array:
    logits = decoder.apply({"params": params}, hidden, method="logits")
    return constraint.apply(logits, *state) if constraint is not None and state else logits

  return to_logits


def legal_states(
  prompts: jax.Array, completions: jax.Array, completion_mask: jax.Array, constraint: Constraint | None
) -> tuple[TokenState, ...]:
  """What a logits function of `make_to_logits` reads beside hidden states: nothing, or the automaton's state at every completion token."""
  return () if constraint is None else (constraint.states(prompts, completions, completion_mask),)


def completion_log_probs(
  decoder: Decoder,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  completions: jax.Array,
  completion_mask: jax.Array,
  *,
  temperature: float = 1.0,
  constraint: Constraint | None = None,
  layout: Layout | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability and entropy `[P, G, Lc]` (float32, nats) of every completion token.

  With the `constraint` of the rollout, both are of the distribution over legal tokens. `layout`: the rows that completions are computed in
  (None: one for each); it changes no value under `completion_mask`, and outside it values mean nothing.
  """
  hidden = completion_hidden(decoder, params, prompts, prompt_mask, completions, completion_mask, layout=layout)
  states = legal_states(prompts, completions, completion_mask, constraint)
  targets = completions
  if layout is not None:
    targets, states = jax.tree.map(layout.predicted, (targets, states))
  terms = token_log_probs(make_to_logits(decoder, params, constraint), hidden, targets, *states, temperature=temperature)
  if layout is None:
    return terms
  log_probs, entropy = (layout.unpack(x, completions.shape) for x in terms)
  return log_probs, entropy
