"""Compiled programs that answer batches of prompts, padded into few shapes, so that a server that has warmed up compiles nothing more."""

import bisect
import dataclasses
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import DataError
from gr2_jax.language.answers import NOT_FINITE, VERDICTS
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

_FILL = "fill"  # no mode: slates computed, and kept on the device


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


class Shape(NamedTuple):
  """What a program is compiled for: `work`, a mode or `_FILL`, for `size` rows of `length` tokens behind slates of `slate_length`."""

  work: str
  size: int
  length: int
  slate_length: int = 0


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
    self._decode = jax.jit(self._decode_batch, static_argnames=("mode", "slate_length"))
    self._score = jax.jit(self._score_batch, static_argnames="slate_length")
    self._fill = jax.jit(self._fill_pool, donate_argnums=1)
    self._programs: dict[Shape, Callable[..., Any]] = {}
    self._compiling, self._warming = threading.Lock(), False

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
    """Compiles every program of `modes`; yields (done, all) after each. Rows may be answered meanwhile.

    First come those that can answer any row in the first of the modes, for one row and for a full batch. Until all are there, rows for
    which the smallest program is missing are padded to a larger one.
    """
    shapes = self._all_shapes(modes)
    self._warming = True
    try:
      for done, shape in enumerate(shapes, start=1):
        self._program(shape)
        yield done, len(shapes)
    finally:
      self._warming = False

  def is_ready(self, mode: str) -> bool:
    """Whether any row in `mode` can be answered without compiling."""
    return all(shape in self._programs for shape in self._likely_shapes(mode))

  def _likely_shapes(self, mode: str) -> list[Shape]:
    slate_length = self.prompt_lengths[-1] if self.prefix_cache else 0
    sizes = sorted({1, self.batch_sizes[-1]})
    fills = [Shape(_FILL, size, slate_length) for size in sizes if self.prefix_cache]
    return fills + [Shape(mode, size, self.rest_lengths[-1], slate_length) for size in sizes]

  def _all_shapes(self, modes: Sequence[str]) -> list[Shape]:
    slates = self.prompt_lengths if self.prefix_cache else (0,)
    fills = [Shape(_FILL, *of) for of in itertools.product(self.batch_sizes, self.prompt_lengths if self.prefix_cache else ())]
    answers = [Shape(*of) for of in itertools.product(modes, self.batch_sizes, self.rest_lengths, slates)]
    return list(dict.fromkeys([*self._likely_shapes(modes[0]), *fills, *answers]))

  def _choose(self, work: str, rows: int, longest: int, slate_length: int = 0) -> Shape:
    """The smallest shape that holds so many rows of at most so many tokens; while programs are compiled, of those that are there."""
    lengths = self.prompt_lengths if work == _FILL else self.rest_lengths
    size, length = self.batch_sizes[bisect.bisect_left(self.batch_sizes, rows)], lengths[bisect.bisect_left(lengths, longest)]
    smallest = Shape(work, size, length, slate_length)
    if not self._warming or smallest in self._programs:
      return smallest
    larger = [shape for shape in list(self._programs) if shape.work == work and all(map(operator.ge, shape[1:], smallest[1:]))]
    return min(larger, default=smallest)

  def _program(self, shape: Shape) -> Callable[..., Any]:
    """What is compiled for a shape, if need be now. Nothing is run, so that the device can answer meanwhile."""
    if (program := self._programs.get(shape)) is not None:
      return program
    with self._compiling:
      if shape not in self._programs:
        self._programs[shape] = self._lower(shape).compile()
      return self._programs[shape]

  def _lower(self, shape: Shape) -> jax.stages.Lowered:
    def of(*sizes: int) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((shape.size, *sizes), jnp.int32)

    names = self._vocabulary.num_candidates
    tokens = mask = of(shape.length)
    pool = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._pool)
    if shape.work == _FILL:
      return self._fill.lower(self._params, pool, tokens, mask, of())
    entries = of() if self.prefix_cache else None
    inputs = (self._params, tokens, mask, of(names, self._reference_length), pool, entries)
    if shape.work == "score":
      return self._score.lower(*inputs, slate_length=shape.slate_length)
    return self._decode.lower(*inputs, of(names), mode=shape.work, slate_length=shape.slate_length)

  def _answer_batch(self, rows: Sequence[Row], mode: str) -> list[RowAnswer]:
    slate_length, found_in = self._place_slates([row.tokens[: row.shared] for row in rows]) if self.prefix_cache else (0, [])
    prompts = [row.tokens[row.shared if self.prefix_cache else 0 :] for row in rows]
    shape = self._choose(mode, len(rows), max(map(len, prompts)), slate_length)
    filler = shape.size - len(rows)
    tokens, mask = self._pad([*prompts, *[prompts[0]] * filler], shape)
    filled = [*rows, *[rows[0]] * filler]
    references = np.full((shape.size, self._vocabulary.num_candidates, self._reference_length), -1, np.int32)
    for place, row in enumerate(filled):
      references[place, : len(row.references)] = row.references
    entries = np.asarray(found_in + [found_in[0]] * filler, np.int32) if self.prefix_cache else None
    inputs = (self._params, tokens, mask, references, self._pool, entries)
    program = self._program(shape)
    if mode == "score":
      return [sort_scores(row.shown, of_row) for row, of_row in zip(rows, np.asarray(program(*inputs)), strict=False)]
    shown = pad_shown([row.shown for row in filled], self._vocabulary.num_candidates).astype(np.int32)
    found = jax.device_get(program(*inputs, shown))
    return [_read(row, *of_row) for row, *of_row in zip(rows, *found, strict=False)]

  def _pad(self, prompts: Sequence[list[int]], shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens and mask `[size, length]`; rows without a prompt are empty."""
    tokens = np.full((shape.size, shape.length), self._vocabulary.pad_id, np.int32)
    mask = np.zeros(tokens.shape, np.int32)
    for place, prompt in enumerate(prompts):
      tokens[place, : len(prompt)], mask[place, : len(prompt)] = prompt, 1
    return tokens, mask

  def _place_slates(self, slates: list[list[int]]) -> tuple[int, list[int]]:
    """(padded length, entry of each slate), after those that are not on the device were computed."""
    keys = [np.asarray(slate, np.int32).tobytes() for slate in slates]
    entries, missing = self.index.find(keys)
    if missing:
      shape = self._choose(_FILL, len(missing), max(len(slates[place]) for place in missing))
      tokens, mask = self._pad([slates[place] for place in missing], shape)
      where = np.full(shape.size, self.prefix_cache, np.int32)  # past the last entry: dropped
      where[: len(missing)] = [entries[place] for place in missing]
      self._pool = self._program(shape)(self._params, self._pool, tokens, mask, where)
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
  ) -> tuple[jax.Array, ...]:
    """Rankings `[B, K]`, codes of `answers.VERDICTS` `[B]`, completions and their masks `[B, Lc]`, and whether logits were finite `[B]`."""
    limit, constraint = self._max_new_tokens[mode], self._constraints[mode]
    config = RolloutConfig.of(self._decoder, self._vocabulary, group=1, max_new_tokens=limit, constraint=constraint)
    sampling, prefix = Sampling.create(temperature=0.0), _read_pool(pool, entries, slate_length)
    rollout = generate(config, params, tokens, mask, jax.random.key(0), sampling, references=references, prefix=prefix)
    parsed = parse_compact(rollout.completions, references, shown, vocabulary=self._vocabulary, style=style_of(mode, self._style))
    finite = jnp.isfinite(rollout.behaviour_logps[:, 0]).all(axis=1)
    return parsed.rankings[:, 0], parsed.codes[:, 0], rollout.completions[:, 0], rollout.completion_mask[:, 0], finite

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


def sort_scores(shown: np.ndarray, scores: np.ndarray) -> RowAnswer:
  """Candidates by the scores of the slots at which they are `shown`, equal ones as they are shown; what is behind the slots is padding."""
  slots = np.argsort(-scores[: len(shown)], kind="stable")
  if not np.isfinite(scores[slots]).all():
    return RowAnswer(None, None, NOT_FINITE, [])
  return RowAnswer(shown[slots], scores[slots], None, [])


def _read(row: Row, ranking: np.ndarray, code: int, tokens: np.ndarray, mask: np.ndarray, finite: bool) -> RowAnswer:
  if not finite:
    return RowAnswer(None, None, NOT_FINITE, [])
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
