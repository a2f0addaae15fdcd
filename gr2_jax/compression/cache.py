"""Compressed histories of a run: filled by the stage `compress`, one cache on disk for each variant, and read by every later stage."""

import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.compression.rules import original_tokens
from gr2_jax.data.disk_cache import DiskCache, content_key
from gr2_jax.data.schema import DataError, Slate
from gr2_jax.language.prompts import PromptContext, PromptStyle, present
from gr2_jax.models.transformer import Decoder
from gr2_jax.rollout.generate import prefill
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run
from gr2_jax.training.progress import Task

_TIMED_ROUNDS = 5


class Histories(NamedTuple):
  """What stands in the prompts of n slates: `histories [n]` lists of tokens (None: the slates' own); `memory`, what a decoder's parameters
  must hold besides to read them (nothing, or the soft tokens).
  """

  histories: list[list[int]] | None
  memory: dict[str, jax.Array]


FULL_HISTORIES = Histories(None, {})

# Slates -> for each the tokens of its compressed history, and the outcome (`compression.rules.OUTCOMES`).
CompressFn = Callable[[Sequence[Slate]], list[tuple[list[int], str]]]


def history_key(history: Sequence[str]) -> str:
  """Under which a compressed history is kept: equal histories, whosever they are, are compressed once."""
  return content_key(history)


def open_histories(run: Run, variant: str, *, write: bool = False) -> DiskCache:
  """The histories that the stage `compress` wrote by a variant: by `history_key`, `{"tokens", "outcome", ..}`."""
  return DiskCache(run.path("compress", f"{variant}.jsonl"), write=write)


def memory_path(run: Run) -> pathlib.Path:
  """Where the soft tokens of all items lie, `[N * per_item, D]`."""
  return run.path("compress", "memory.npy")


def load_memory(run: Run) -> dict[str, jax.Array]:
  """What a decoder's parameters must hold besides to read histories of soft tokens; raises DataError where they are not finite."""
  memory = np.load(memory_path(run))
  if not np.isfinite(memory).all():
    raise DataError(f"{memory_path(run)}: the soft tokens are not finite; remove {run.path('compress')} and run the stage 'compress' again")
  return {"memory": jnp.asarray(memory)}


def fill_cache(
  stage: StageContext, variant: str, compress: CompressFn, slates: Sequence[Slate], batch_size: int, task: Task
) -> dict[str, Any]:
  """Compresses the histories that `RUN/compress/VARIANT.jsonl` lacks, each once, and returns the variant's part of the report."""
  of_key = {history_key(slate.history): slate for slate in slates}
  with open_histories(stage.run, variant, write=stage.run.main) as cache:
    missing = [key for key in of_key if key not in cache]
    for start in range(0, len(missing), batch_size):
      stage.stop.check()
      keys = missing[start : start + batch_size]
      for key, (tokens, outcome) in zip(keys, compress([of_key[key] for key in keys]), strict=True):
        slate = of_key[key]
        size = len(original_tokens(slate, stage.prompts, stage.style))
        cache.put(key, {"user": slate.user, "tokens": tokens, "outcome": outcome, "original": size})
      task.update(len(of_key) - len(missing) + start + len(keys))
    entries = [cache[key] for key in of_key]
  original, compressed = sum(entry["original"] for entry in entries), sum(len(entry["tokens"]) for entry in entries)
  return {
    "histories": len(entries),
    "original_tokens": original / len(entries),
    "compressed_tokens": compressed / len(entries),
    "history_kept": compressed / original if original else None,
    "outcomes": dict(Counter(entry["outcome"] for entry in entries)),
  }


def load_compressed(run: Run, slates: Sequence[Slate]) -> dict[str, Histories]:
  """Variant -> the compressed histories of `slates`; none where the run compresses nothing. Raises DataError for one that is missing."""
  found = {}
  for variant in run.config.compress.variants:
    cache = open_histories(run, variant)
    keys = [history_key(slate.history) for slate in slates]
    missing = next((slate for slate, key in zip(slates, keys, strict=True) if key not in cache), None)
    if missing is not None:
      raise DataError(f"{cache.path}: has no history of user {missing.user!r}; add the split to config.compress.splits")
    found[variant] = Histories([cache[key]["tokens"] for key in keys], load_memory(run) if variant == "soft_tokens" else {})
  return found


def time_prefill(
  decoder: Decoder,
  params: Any,
  slates: Sequence[Slate],
  context: PromptContext,
  style: PromptStyle,
  histories: Mapping[str, Histories],
  *,
  batch_size: int,
) -> dict[str, float]:
  """Milliseconds a slate of the forward pass over a batch of prompts, by name: medians of rounds in which all take turns."""
  chosen = slates[:batch_size]
  shown = [present(len(slate.candidates), "upstream", (0, 0, 0)) for slate in chosen]
  run = jax.jit(lambda params, tokens, mask: prefill(decoder, params, tokens, mask))
  calls = {}
  for name, of in histories.items():
    batch = render_prompts(chosen, shown, context, style, histories=None if of.histories is None else of.histories[: len(chosen)])
    calls[name] = (params | of.memory, *jax.device_put((batch.tokens, batch.mask)))
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for round_number in range(1 + _TIMED_ROUNDS):
    for name, arguments in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(run(*arguments))
      if round_number:  # the first one compiles
        seconds[name].append(time.perf_counter() - began)
  return {name: 1000 * statistics.median(of) / len(chosen) for name, of in seconds.items()}
