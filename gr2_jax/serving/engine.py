"""Compiled programs that answer batches of prompts, padded into few shapes, so that a server that has warmed up compiles nothing more."""

import bisect
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gr2_jax.data.schema import DataError
from gr2_jax.language.answers import VERDICTS
from gr2_jax.language.prompts import PromptStyle
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.models.cache import Prefix
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import RolloutConfig, generate, prefill
from gr2_jax.rollout.parse import parse_compact
from gr2_jax.rollout.rerank import pad_shown, round_length
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.scoring import answer_opening, score_candidates
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.serving.request import MODES
from gr2_jax.serving.slate_cache import SlateIndex, SlatePool


class Row(NamedTuple):
  """One presentation of a slate: the prompt's tokens, of which the first `shared` are the slate's own, the tokens that name the candidate
  at each slot, and the candidate at each slot.
  """

  tokens: list[int]
  shared: int
  references: list[tuple[int, ...]]
  shown: np.ndarray


class RowAnswer(NamedTuple):
  """`order [K]`: candidates, best first, or None with the kind of `error`; `scores [K]` along the order where they were computed;
  `completion`: the tokens decoded.
  """

  order: np.ndarray | None
  scores: np.ndarray | None
  error: str | None
  completion: list[int]


class Engine:
  """Answers rows in batches of at most `batch_sizes[-1]`, prompts padded to one of `prompt_lengths` (both ascending).

  The keys and values of `prefix_cache` slates stay on the device (0: none), and a prompt whose slate is among them is computed from there
  on, padded to one of `rest_lengths` (none given: `prompt_lengths`). One thread at a time is served. Raises DataError for a cache that does
  not hold the slates of a batch.
  """

  def __init__(
    self,
    decoder: Decoder,
    params: Any,
    vocabulary: Vocabulary,
    style: PromptStyle,
    *,
    max_new_tokens: int,
    batch_sizes: Sequence[int],
    prompt_lengths: Sequence[int],
    prefix_cache: int = 0,
    rest_lengths: Sequence[int] = (),
  ):
    if 0 < prefix_cache < batch_sizes[-1]:
      raise DataError(f"prefix_cache: {prefix_cache} must hold the slates of a batch, {batch_sizes[-1]}; raise it, or 0 for no reuse")
    self.batch_sizes, self.prompt_lengths, self.prefix_cache = tuple(batch_sizes), tuple(prompt_lengths), prefix_cache
    self.rest_lengths = tuple(rest_lengths) or self.prompt_lengths
    self.index = SlateIndex(prefix_cache)
    self._decoder, self._params, self._vocabulary = decoder, params, vocabulary
    self._constraints = {mode: SlateConstraint(vocabulary, style_of(mode, style)) for mode in MODES}
    self._style = style_of("score", style)
    self._reference_length = self._constraints["score"].reference_length
    answer_tokens = vocabulary.num_candidates * self._reference_length + 4  # </think>, <answer>, </answer> and eos
    self._max_new_tokens = {"reason": max(max_new_tokens, answer_tokens), "direct": answer_tokens}
    self._pool = self._empty_pool()
    self._lock = threading.Lock()
    # Compiled once for each batch size, prompt length and, with reuse, length of the slates.
    self._decode = jax.jit(self._decode_batch, static_argnames=("mode", "slate_length"))
    self._score = jax.jit(self._score_batch, static_argnames="slate_length")
    self._fill = jax.jit(self._fill_pool, donate_argnums=1)

  def answer(self, rows: Sequence[Row], mode: str) -> list[RowAnswer]:
    """An answer for each row in `mode` (one of `request.MODES`)."""
    answers: list[RowAnswer] = []
    with self._lock:
      for start in range(0, len(rows), self.batch_sizes[-1]):
        try:
          answers += self._answer_batch(rows[start : start + self.batch_sizes[-1]], mode)
        except Exception:
          # A call that failed may have taken the donated pool with it.
          self.index.clear()
          self._pool = self._empty_pool()
          raise
    return answers

  def warm_up(self, modes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Compiles every program of `modes`, shape by shape; yields (done, all) after each."""
    filler = (self._vocabulary.candidate_start,) * self._reference_length
    slates = self.prompt_lengths if self.prefix_cache else (0,)
    shapes = [(mode, size, rest, slate) for mode in modes for size in self.batch_sizes for rest in self.rest_lengths for slate in slates]
    for done, (mode, size, rest, slate) in enumerate(shapes, start=1):
      # Different slates, none of them on the device, so that as many are computed as there are rows.
      self.index.clear()
      rows = [Row([-1 - place] * slate + [0] * rest, slate, [filler], np.arange(1)) for place in range(size)]
      self.answer(rows, mode)
      yield done, len(shapes)
    self.index.clear()
    self.index.hits = self.index.misses = 0

  def _answer_batch(self, rows: Sequence[Row], mode: str) -> list[RowAnswer]:
    size = self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(rows))]
    filler = [rows[0]] * (size - len(rows))
    slate_length, entries = 0, None
    if self.prefix_cache:
      slate_length, found_in = self._place_slates([row.tokens[: row.shared] for row in rows])
      entries = np.asarray(found_in + [found_in[0]] * len(filler), np.int32)
    filled = [*rows, *filler]
    tokens, mask = self._pad([row.tokens[row.shared if self.prefix_cache else 0 :] for row in filled], size, self.rest_lengths)
    references = np.full((size, self._vocabulary.num_candidates, self._reference_length), -1, np.int32)
    for place, row in enumerate(filled):
      references[place, : len(row.references)] = row.references
    inputs = (self._params, tokens, mask, references)
    if mode == "score":
      scores = np.asarray(self._score(*inputs, self._pool, entries, slate_length=slate_length))
      return [_sort(row, of_row) for row, of_row in zip(rows, scores, strict=False)]
    shown = pad_shown([row.shown for row in filled], self._vocabulary.num_candidates)
    found = jax.device_get(self._decode(*inputs, self._pool, entries, shown, mode=mode, slate_length=slate_length))
    return [_read(row, *of_row) for row, *of_row in zip(rows, *found, strict=False)]

  def _pad(self, prompts: Sequence[list[int]], size: int, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens and mask `[size, L]`, L the smallest of `lengths` that holds all; rows without a prompt are empty."""
    length = lengths[bisect.bisect_left(lengths, max(map(len, prompts)))]
    tokens = np.full((size, length), self._vocabulary.pad_id, np.int32)
    mask = np.zeros((size, length), np.int32)
    for place, prompt in enumerate(prompts):
      tokens[place, : len(prompt)], mask[place, : len(prompt)] = prompt, 1
    return tokens, mask

  def _place_slates(self, slates: list[list[int]]) -> tuple[int, list[int]]:
    """(padded length, entry of each slate), after those that are not on the device were computed."""
    keys = [np.asarray(slate, np.int32).tobytes() for slate in slates]
    entries, missing = self.index.find(keys)
    if missing:
      size = self.batch_sizes[bisect.bisect_left(self.batch_sizes, len(missing))]
      tokens, mask = self._pad([slates[place] for place in missing], size, self.prompt_lengths)
      where = np.full(size, self.prefix_cache, np.int32)  # past the last entry: dropped
      where[: len(missing)] = [entries[place] for place in missing]
      self._pool = self._fill(self._params, self._pool, tokens, mask, where)
    longest = max(map(len, slates))
    return self.prompt_lengths[bisect.bisect_left(self.prompt_lengths, longest)], entries

  def _empty_pool(self) -> SlatePool | None:
    return SlatePool.empty(self._decoder.config, self.prefix_cache, self.prompt_lengths[-1]) if self.prefix_cache else None

  def _fill_pool(self, params: Any, pool: SlatePool, tokens: jax.Array, mask: jax.Array, entries: jax.Array) -> SlatePool:
    _, prefix, _ = prefill(self._decoder, params, tokens, mask)
    return pool.write(entries, prefix)

  def _decode_batch(
    self,
    params: Any,
    tokens: jax.Array,
    mask: jax.Array,
    references: jax.Array,
    pool: SlatePool | None,
    entries: jax.Array | None,
    shown: jax.Array,
    *,
    mode: str,
    slate_length: int,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Rankings `[B, K]`, codes of `answers.VERDICTS` `[B]`, completions and their masks `[B, Lc]`."""
    limit, constraint = self._max_new_tokens[mode], self._constraints[mode]
    config = RolloutConfig.of(self._decoder, self._vocabulary, group=1, max_new_tokens=limit, constraint=constraint)
    sampling, prefix = Sampling.create(temperature=0.0), _read_pool(pool, entries, slate_length)
    rollout = generate(config, params, tokens, mask, jax.random.key(0), sampling, references=references, prefix=prefix)
    parsed = parse_compact(rollout.completions, references, shown, vocabulary=self._vocabulary, style=style_of(mode, self._style))
    return parsed.rankings[:, 0], parsed.codes[:, 0], rollout.completions[:, 0], rollout.completion_mask[:, 0]

  def _score_batch(
    self,
    params: Any,
    tokens: jax.Array,
    mask: jax.Array,
    references: jax.Array,
    pool: SlatePool | None,
    entries: jax.Array | None,
    *,
    slate_length: int,
  ) -> jax.Array:
    opening = answer_opening(self._vocabulary, self._style)
    prefix = _read_pool(pool, entries, slate_length)
    return score_candidates(self._decoder, params, tokens, mask, references, prefix, opening=opening, constraint=self._constraints["score"])


def style_of(mode: str, style: PromptStyle) -> PromptStyle:
  """How prompts are written in a mode. Scores are read behind an opening that is written where they are computed."""
  return dataclasses.replace(style, direct=mode == "direct")


def _read_pool(pool: SlatePool | None, entries: jax.Array | None, slate_length: int) -> Prefix | None:
  return None if pool is None or entries is None else pool.read(entries, slate_length)


def _sort(row: Row, scores: np.ndarray) -> RowAnswer:
  """Candidates by their scores, equal ones as they are shown."""
  slots = np.argsort(-scores[: len(row.shown)], kind="stable")
  if not np.isfinite(scores[slots]).all():
    return RowAnswer(None, None, "not_finite", [])
  return RowAnswer(row.shown[slots], scores[slots], None, [])


def _read(row: Row, ranking: np.ndarray, code: int, tokens: np.ndarray, mask: np.ndarray) -> RowAnswer:
  completion = tokens[mask].tolist()
  return RowAnswer(None if code else ranking[: len(row.shown)], None, VERDICTS[code], completion)


def default_batch_sizes(largest: int) -> tuple[int, ...]:
  """1, 4, 16, ... up to `largest`."""
  sizes = [1]
  while sizes[-1] * 4 < largest:
    sizes.append(sizes[-1] * 4)
  return (*sizes, largest) if largest > 1 else (1,)


def default_prompt_lengths(longest: int, usual: int | None = None) -> tuple[int, ...]:
  """`longest`, and `usual` (None: the same) with half of it, rounded up to multiples of 16."""
  whole = round_length(longest if usual is None else usual)
  return tuple(sorted({round_length(whole // 2), whole, round_length(longest)}))
