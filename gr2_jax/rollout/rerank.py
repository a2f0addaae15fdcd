"""A policy's answers to slates: render, decode, parse; the same path in RL, in evaluation and wherever else a policy ranks."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.language.answers import NOT_FINITE, VERDICTS, reference_tokens
from gr2_jax.language.prompts import PromptContext, PromptStyle, render_prompt
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.numerics import filled_batches
from gr2_jax.rollout.generate import Rollout
from gr2_jax.rollout.parse import parse_completions
from gr2_jax.rollout.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class PromptBatch:
  """`tokens`, `mask [P, Lp]` int32, left-aligned; `references [P, K, L]` the tokens that name each candidate, -1 where there is none."""

  tokens: np.ndarray
  mask: np.ndarray
  references: np.ndarray


@dataclasses.dataclass(frozen=True)
class RankedSlates:
  """What a policy answered to n slates: `rankings [n, K]` (-1 rows where invalid), error kinds, completions, and token counts `[n]`.

  An answer drawn from logits, or sorted by scores, that are not finite is invalid: `answers.NOT_FINITE`.
  """

  rankings: np.ndarray
  errors: list[str | None]
  completions: list[list[int]]
  prompt_tokens: np.ndarray
  completion_tokens: np.ndarray
  reasoning_tokens: np.ndarray


def render_prompts(
  slates: Sequence[Slate],
  shown: Sequence[np.ndarray],
  context: PromptContext,
  style: PromptStyle,
  *,
  length: int | None = None,
  histories: Sequence[Sequence[int]] | None = None,
) -> PromptBatch:
  """Prompts of slates, padded to `length` (default: `round_length` of the longest).

  `histories`: for each slate the tokens that stand there instead of its history.
  """
  given: Sequence[Sequence[int] | None] = [None] * len(slates) if histories is None else histories
  prompts = [render_prompt(slate, order, context, style, history) for slate, order, history in zip(slates, shown, given, strict=True)]
  longest = max(len(prompt.tokens) for prompt in prompts)
  length = round_length(longest) if length is None else length
  tokens = np.full((len(prompts), length), context.vocabulary.pad_id, np.int32)
  mask = np.zeros((len(prompts), length), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt.tokens)] = prompt.tokens
    mask[row, : len(prompt.tokens)] = 1
  return PromptBatch(tokens, mask, _references(slates, shown, context, style))


def append_reasoning(prompts: PromptBatch, completions: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Prompts `[P, Lp]` with what completions `[P, Lc]` say before their answer: tokens, mask `[P, Lp + Lc]`, and whether one came `[P]`."""
  answering = completions == vocabulary.special("answer")
  lengths = np.where(answering.any(axis=1), answering.argmax(axis=1), 0)
  tokens = np.pad(prompts.tokens, ((0, 0), (0, completions.shape[1])), constant_values=vocabulary.pad_id)
  mask = np.pad(prompts.mask, ((0, 0), (0, completions.shape[1])))
  for row, (start, length) in enumerate(zip(prompts.mask.sum(axis=1), lengths, strict=True)):
    tokens[row, start : start + length] = completions[row, :length]
    mask[row, start : start + length] = 1
  return tokens, mask, answering.any(axis=1)


def round_length(tokens: int) -> int:
  """The next multiple of 16, so that few shapes are compiled."""
  return -(-tokens // 16) * 16


def _references(slates: Sequence[Slate], shown: Sequence[np.ndarray], context: PromptContext, style: PromptStyle) -> np.ndarray:
  if style.answer != "compact":
    return np.full((len(slates), 1, 1), -1, np.int32)  # free text is decoded without a constraint
  named = []
  for slate, order in zip(slates, shown, strict=True):
    codes = context.codes[context.catalogue.to_rows(slate.candidates)]
    named.append(reference_tokens(order, context.vocabulary, style, codes))
  out = np.full((len(slates), context.vocabulary.num_candidates, len(named[0][0])), -1, np.int32)
  for row, tokens in enumerate(named):
    if len(tokens) > out.shape[1]:
      raise DataError(f"num_candidates: {out.shape[1]} is too few for a slate of {len(tokens)}; raise config.tokenize.num_candidates")
    out[row, : len(tokens)] = tokens
  return out


def pad_shown(shown: Sequence[np.ndarray], width: int) -> np.ndarray:
  """Presentations as `[n, width]`; a shorter slate's padding indices come last, in order."""
  return np.stack([np.concatenate([order, np.arange(len(order), width)]) for order in shown])


def rank_slates(
  generate: Callable[..., Rollout],
  params: Any,
  slates: Sequence[Slate],
  shown: Sequence[np.ndarray],
  context: PromptContext,
  style: PromptStyle,
  *,
  batch_size: int,
  key: jax.Array,
  sampling: Sampling | None = None,
  on_progress: Callable[[int], None] | None = None,
  histories: Sequence[Sequence[int]] | None = None,
  length: int | None = None,
) -> RankedSlates:
  """One answer for each slate by `generate` (made for a group of 1), greedy unless `sampling` says otherwise.

  Slates are given to `generate` in equal batches of at most `batch_size`; the last one is filled up with repeated slates, so that every
  batch has one shape. A batch is decoded while the answers of the one before are read. Through lanes (`make_generate_queue`) batches may be
  large, and a slate that is answered makes room for the next.
  `histories` and `length` are those of `render_prompts`.
  """
  sampling = Sampling.create(temperature=0.0) if sampling is None else sampling
  prompts = render_prompts(slates, shown, context, style, length=length, histories=histories)
  presented = pad_shown(shown, max(len(slate.candidates) for slate in slates))
  batch_size = -(-len(slates) // -(-len(slates) // batch_size))
  batches = list(filled_batches(len(slates), batch_size))

  def decode(rows: np.ndarray) -> Rollout:
    return generate(params, prompts.tokens[rows], prompts.mask[rows], key, sampling, row_ids=rows, references=prompts.references[rows])

  def read(rows: np.ndarray, rollout: Rollout) -> tuple[np.ndarray, ...]:
    parsed = parse_completions(
      rollout.completions, prompts.references[rows], presented[rows], [slates[row] for row in rows], context, style
    )
    return jax.device_get((*parsed, rollout.completions, rollout.completion_mask, rollout.behaviour_logps))

  parts = []
  following = decode(batches[0])
  for number, rows in enumerate(batches, start=1):
    rollout = following
    if number < len(batches):
      following = decode(batches[number])
    parts.append(read(rows, rollout))
    if on_progress is not None:
      on_progress(min(number * batch_size, len(slates)))
  rankings, codes, reasoning, tokens, mask, log_probs = (np.concatenate(arrays)[: len(slates), 0] for arrays in zip(*parts, strict=True))
  finite = np.isfinite(log_probs).all(axis=1)
  return RankedSlates(
    rankings=np.where(finite[:, None], rankings, -1),
    errors=[VERDICTS[code] if fine else NOT_FINITE for code, fine in zip(codes, finite, strict=True)],
    completions=[row[real].tolist() for row, real in zip(tokens, mask > 0, strict=True)],
    prompt_tokens=prompts.mask.sum(axis=1),
    completion_tokens=mask.sum(axis=1),
    reasoning_tokens=reasoning,
  )
