"""The slate automaton: which tokens may follow, so that a compact answer always is a full permutation of the candidates.

`[<think> reasoning </think>] <answer> each candidate's reference once </answer> <eos>`, a reference being a slot's token or a semantic ID.
A direct answer begins with `<answer>`. In the reasoning any text, candidate or SID may stand; it must end in time for the answer.
Log-probabilities are normalised over the legal tokens, in sampling and in every loss alike, otherwise importance ratios would be wrong.
The format reward is then earned by construction: a small model spends its capacity on the order.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.language.prompts import PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rollout.legal_tokens import TokenState, mask_illegal

_FRAMES = 4  # </think>, <answer>, </answer>, eos: what an answer needs besides its references
_FREE, _START, _THINK, _THINK_CLOSE, _ANSWER, _REFERENCE, _ANSWER_CLOSE, _EOS = range(8)


class SlateConstraint:
  """The automaton of a vocabulary and style. Raises ValueError for answers that are not compact."""

  def __init__(self, vocabulary: Vocabulary, style: PromptStyle) -> None:
    if style.answer != "compact":
      raise ValueError("constraint: the slate automaton reads compact answers alone; set prompt.answer='compact'")
    self.max_candidates = vocabulary.num_candidates
    self.reference_length = 1 if style.reference == "slot" else vocabulary.num_levels + 2 * style.sid_markers
    self.answer, self.answer_close = vocabulary.special("answer"), vocabulary.special("/answer")
    self.think_close = vocabulary.special("/think")
    self.vocabulary_size = vocabulary.size
    legal = np.zeros((8, vocabulary.size), bool)
    legal[_FREE] = True
    legal[_START, self.answer] = True
    legal[_START, vocabulary.special("think")] = not style.direct
    legal[_THINK, : vocabulary.used_size] = True
    legal[_THINK, list(vocabulary.forbidden_ids)] = False
    legal[_THINK, self.think_close] = True
    legal[_THINK_CLOSE, self.think_close] = True
    legal[_ANSWER, self.answer] = True
    legal[_ANSWER_CLOSE, self.answer_close] = True
    legal[_EOS, vocabulary.eos_id] = True
    self.legal = legal

  def apply(self, logits: jax.Array, state: TokenState) -> jax.Array:
    """Logits `[n, V]` with all tokens but the legal ones out of reach."""
    following = jnp.where(state.phase[:, None] == _REFERENCE, state.following, self.vocabulary_size)
    return mask_illegal(logits, self.legal, state._replace(following=following))

  def next_state(self, completions: jax.Array, length: jax.Array, references: jax.Array) -> TokenState:
    """State of the token at place `length [B]` of completions `[B, Lc]`, of which only earlier places are read.

    `references [B, K, L]`: tokens that name each candidate, -1 where a slate has fewer than K. Candidates that share a semantic ID
    may be named as often as there are of them.
    """
    limit = completions.shape[1]
    tokens = jnp.where(jnp.arange(limit) < length[:, None], completions, -1)
    exists = references[:, :, 0] >= 0
    size = jnp.sum(exists, axis=1)
    answering, start = jnp.any(tokens == self.answer, axis=1), jnp.argmax(tokens == self.answer, axis=1) + 1
    written = jnp.where(answering, length - start, 0)
    complete, level = written // self.reference_length, written % self.reference_length
    answer = self._read_references(tokens, start)
    same = jnp.all(answer[:, :, None] == references[:, None], axis=-1) & (jnp.arange(self.max_candidates) < complete[:, None])[:, :, None]
    twin = jnp.all(references[:, :, None] == references[:, None], axis=-1)
    earlier_twins = jnp.sum(jnp.tril(twin, -1), axis=-1)
    remaining = exists & (jnp.sum(same, axis=1) <= earlier_twins)
    begun = jnp.take_along_axis(answer, jnp.minimum(complete, self.max_candidates - 1)[:, None, None], axis=1)
    agrees = jnp.all((references == begun) | (jnp.arange(self.reference_length) >= level[:, None, None]), axis=-1)
    following = jnp.take_along_axis(references, level[:, None, None], axis=2)[:, :, 0]

    def seen(token: int) -> jax.Array:
      return jnp.any(tokens == token, axis=1)

    phase = self._phase(
      first=length == 0,
      late=length >= limit - (size * self.reference_length + _FRAMES),
      thought=seen(self.think_close),
      answering=answering,
      complete=complete >= size,
      closed=seen(self.answer_close),
    )
    return TokenState(phase, jnp.where(remaining & agrees, following, self.vocabulary_size))

  def first_reference(self, references: jax.Array) -> TokenState:
    """States of all places of every candidate's reference `[P, K, L]`, each written as the first of its answer."""
    same = references[:, :, None] == references[:, None]  # [P, of, beside, L]
    agrees = jnp.cumprod(jnp.concatenate([jnp.ones_like(same[..., :1]), same[..., :-1]], axis=-1), axis=-1) > 0
    following = jnp.where(agrees & (references[:, None] >= 0), references[:, None], self.vocabulary_size)
    return TokenState(jnp.full(references.shape, _REFERENCE), following.swapaxes(-1, -2))

  def replay(self, tokens: jax.Array, completion: jax.Array, segment_ids: jax.Array, max_new_tokens: int | None = None) -> TokenState:
    """States of all places of rows `[B, T]` whose `completion [B, T]` places are finished answers; elsewhere every token is legal.

    A segment's completion stands at its end. The candidates still to come are those that the answer has not named yet, since a finished
    answer names each once. `max_new_tokens`: the limit under which the answers were sampled; None for answers that were written.
    """
    width = tokens.shape[1]
    index = jnp.arange(width)
    first_place = jnp.concatenate([jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)
    segment_start = jax.lax.cummax(jnp.where(first_place, index, 0), axis=1)

    def count_before(flags: jax.Array) -> jax.Array:  # how often before each place, in its segment
      total = jnp.cumsum(flags.astype(jnp.int32), axis=1) - flags
      return total - jnp.take_along_axis(total, segment_start, axis=1)

    def last_seen(flags: jax.Array) -> jax.Array:  # place of the latest flag up to each place, -1 before any
      return jax.lax.cummax(jnp.where(flags, index, -1), axis=1)

    def next_seen(flags: jax.Array) -> jax.Array:
      return jax.lax.cummin(jnp.where(flags, index, width), axis=1, reverse=True)

    opens, closes = completion & (tokens == self.answer), completion & (tokens == self.answer_close)
    answering = count_before(opens) > 0
    # In the reasoning the answer is still to come, inside it it lies behind.
    start = jnp.where(answering, last_seen(opens & completion), next_seen(opens)) + 1
    size = (jnp.where(count_before(closes) > 0, start, next_seen(closes)) - start) // self.reference_length
    written = jnp.where(answering, index - start, 0)
    current, level = written // self.reference_length, written % self.reference_length
    candidates = jnp.arange(self.max_candidates)
    agrees = (candidates >= current[..., None]) & (candidates < size[..., None])
    following = jnp.full(agrees.shape, self.vocabulary_size)
    for depth in range(self.reference_length):
      theirs = self._gather(tokens, start[..., None] + candidates * self.reference_length + depth)
      own = self._gather(tokens, start + current * self.reference_length + depth)
      following = jnp.where((level == depth)[..., None], theirs, following)
      agrees &= (theirs == own[..., None]) | (level <= depth)[..., None]
    place = count_before(completion)
    limit = jnp.inf if max_new_tokens is None else max_new_tokens
    phase = self._phase(
      first=place == 0,
      late=place >= limit - (size * self.reference_length + _FRAMES),
      thought=count_before(completion & (tokens == self.think_close)) > 0,
      answering=answering,
      complete=current >= size,
      closed=count_before(closes) > 0,
    )
    return TokenState(jnp.where(completion, phase, _FREE), jnp.where(agrees, following, self.vocabulary_size))

  def states(self, prompts: jax.Array, completions: jax.Array, completion_mask: jax.Array) -> TokenState:
    """States of all places of completions `[P, G, Lc]` that were sampled under the limit Lc; the `prompts` decide nothing here."""
    shape = completions.shape
    tokens, real = (x.reshape(-1, shape[-1]) for x in (completions, completion_mask > 0))
    replayed = self.replay(tokens, real, jnp.ones_like(tokens), max_new_tokens=shape[-1])
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[2:]), replayed)

  def _read_references(self, tokens: jax.Array, start: jax.Array) -> jax.Array:
    """The answer's tokens as references `[B, K, L]`, from place `start [B]` on; what is not written yet is -1 or meaningless."""
    places = start[:, None] + jnp.arange(self.max_candidates * self.reference_length)
    return self._gather(tokens, places).reshape(len(tokens), self.max_candidates, self.reference_length)

  @staticmethod
  def _gather(tokens: jax.Array, places: jax.Array) -> jax.Array:
    flat = jnp.clip(places, 0, tokens.shape[1] - 1).reshape(len(tokens), -1)
    return jnp.take_along_axis(tokens, flat, axis=1).reshape(places.shape)

  @staticmethod
  def _phase(
    *, first: jax.Array, late: jax.Array, thought: jax.Array, answering: jax.Array, complete: jax.Array, closed: jax.Array
  ) -> jax.Array:
    phase = jnp.where(late, _THINK_CLOSE, _THINK)
    phase = jnp.where(first, _START, phase)
    phase = jnp.where(thought, _ANSWER, phase)
    phase = jnp.where(answering, jnp.where(complete, _ANSWER_CLOSE, _REFERENCE), phase)
    return jnp.where(closed, _EOS, phase)
