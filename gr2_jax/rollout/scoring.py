"""One-pass re-ranking: candidates sorted by the probability that a direct answer begins with them; nothing is decoded.

The single-token case (slots as names) is FIRST's (arXiv 2406.15657); semantic IDs are scored whole, over the one prompt that they share.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.language.answers import NOT_FINITE
from gr2_jax.language.prompts import PromptContext, PromptStyle, direct_opening
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.cache import Prefix
from gr2_jax.models.transformer import Decoder
from gr2_jax.numerics import filled_batches
from gr2_jax.objectives.token_loss import token_log_probs
from gr2_jax.rollout.completions import completion_hidden, make_to_logits
from gr2_jax.rollout.rerank import RankedSlates, pad_shown, render_prompts
from gr2_jax.rollout.slate_constraint import SlateConstraint


def append_tokens(prompts: jax.Array, prompt_mask: jax.Array, tokens: Sequence[int]) -> tuple[jax.Array, jax.Array]:
  """Left-aligned prompts and mask `[P, Lp + n]` with the n `tokens` behind the last token of each row."""
  places = prompt_mask.astype(jnp.int32).sum(axis=1)[:, None] + jnp.arange(len(tokens))
  rows = jnp.arange(len(prompts))[:, None]

  def write(array: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.pad(array, ((0, 0), (0, len(tokens)))).at[rows, places].set(values)

  return write(prompts, jnp.asarray(tokens, prompts.dtype)), write(prompt_mask, jnp.ones((), prompt_mask.dtype))


def answer_opening(vocabulary: Vocabulary, style: PromptStyle) -> list[int]:
  """Tokens between a prompt and the first reference of a direct answer. Raises ValueError for answers that are not compact."""
  if style.answer != "compact":
    raise ValueError(f"answer: one-pass scores are read at the first reference of compact answers, not of {style.answer}")
  opening = [] if style.direct else direct_opening(vocabulary, style)
  return [*opening, vocabulary.special("answer")]


def score_candidates(
  decoder: Decoder,
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  references: jax.Array,
  prefix: Prefix | None = None,
  *,
  opening: Sequence[int],
  constraint: SlateConstraint | None = None,
) -> jax.Array:
  """Log-probability `[P, K]` (nats, float32) that the answer's first reference is each candidate's; -inf where there is no candidate.

  prompts, prompt_mask `[P, Lp]` left-aligned; references `[P, K, L]` the tokens that name the candidate at each slot, -1 where a slate
  has fewer than K; `opening` see `answer_opening`; `prefix` see `prefill`. A prompt is computed once, its K suffixes of L - 1 tokens attend
  to it. With a `constraint` probabilities are over what the automaton lets follow, so that those of a slate's distinct references sum to 1.
  """
  prompts, prompt_mask = append_tokens(prompts, prompt_mask, opening)
  exists = references[..., 0] >= 0
  tokens = jnp.maximum(references, 0)
  mask = jnp.broadcast_to(exists[..., None], tokens.shape)
  hidden = completion_hidden(decoder, params, prompts, prompt_mask, tokens, mask, prefix)

  extra = () if constraint is None else (constraint.first_reference(references),)
  log_probs, _ = token_log_probs(make_to_logits(decoder, params, constraint), hidden, tokens, *extra)
  return jnp.where(exists, log_probs.sum(axis=-1), -jnp.inf)


def make_score(decoder: Decoder, vocabulary: Vocabulary, style: PromptStyle, constraint: SlateConstraint | None = None) -> Callable:
  """Compile `score_candidates`: `(params, prompts, prompt_mask, references) -> scores [P, K]`. Raises what `answer_opening` raises."""
  opening = answer_opening(vocabulary, style)

  @jax.jit
  def score(params: Any, prompts: jax.Array, prompt_mask: jax.Array, references: jax.Array) -> jax.Array:
    return score_candidates(decoder, params, prompts, prompt_mask, references, opening=opening, constraint=constraint)

  return score


def sort_by_scores(scores: np.ndarray, shown: np.ndarray) -> np.ndarray:
  """Rankings `[P, K]` (candidate indices, best first; -1 past a shorter slate) by scores `[P, K]` of slots, shown as `[P, K]`.

  A row with a NaN is no ranking: -1 throughout. Equal scores keep the order shown, as an answer that names a shared semantic ID twice is
  read.
  """
  slots = np.argsort(-scores, axis=1, kind="stable")
  missing = np.isneginf(np.take_along_axis(scores, slots, axis=1)) | np.isnan(scores).any(axis=1, keepdims=True)
  return np.where(missing, -1, np.take_along_axis(shown, slots, axis=1))


def read_scores(scores: np.ndarray, shown: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
  """(rankings `[P, K]` by scores of slots `[P, K]`, their errors): a slate with a score that is not finite where `real` has no answer."""
  finite = (np.isfinite(scores) | ~real).all(axis=1)
  rankings = np.where(finite[:, None], sort_by_scores(np.where(real, scores, -np.inf), shown), -1)
  return rankings, [None if fine else NOT_FINITE for fine in finite]


def score_in_batches(
  score: Callable,
  params: Any,
  tokens: np.ndarray,
  mask: np.ndarray,
  references: np.ndarray,
  batch_size: int,
  on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
  """`score` (of `make_score`) of n prompts `tokens, mask [n, Lp]`: `[n, K]`. The last batch is filled up with repeated prompts."""
  count = len(tokens)
  batch_size = min(batch_size, count)
  parts = []
  for number, rows in enumerate(filled_batches(count, batch_size), start=1):
    parts.append(np.asarray(score(params, tokens[rows], mask[rows], references[rows])))
    if on_progress is not None:
      on_progress(min(number * batch_size, count))
  return np.concatenate(parts)[:count]


def rank_by_scores(
  score: Callable,
  params: Any,
  slates: Sequence[Slate],
  shown: Sequence[np.ndarray],
  context: PromptContext,
  style: PromptStyle,
  *,
  batch_size: int,
  on_progress: Callable[[int], None] | None = None,
) -> RankedSlates:
  """Every slate sorted by `score` (of `make_score`): what `rank_slates` gives, with empty completions.

  Batches all have one shape: the last is filled up with repeated slates. A slate with a score that is not finite has no answer.
  """
  prompts = render_prompts(slates, shown, context, style)
  presented = pad_shown(shown, max(len(slate.candidates) for slate in slates))
  references = prompts.references[:, : presented.shape[1]]
  scores = score_in_batches(score, params, prompts.tokens, prompts.mask, references, batch_size, on_progress)
  rankings, errors = read_scores(scores, presented, references[..., 0] >= 0)
  nothing = np.zeros(len(slates), np.int32)
  return RankedSlates(
    rankings=rankings,
    errors=errors,
    completions=[[] for _ in slates],
    prompt_tokens=prompts.mask.sum(axis=1),
    completion_tokens=nothing,
    reasoning_tokens=nothing,
  )
