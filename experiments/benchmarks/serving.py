"""What a ranking costs in each mode, by the number of requests at once, with the slate computed for each user or once for all of them.

Fresh weights, of a seed with which `reason` begins to reason: it then goes on until the constraint asks for the answer, as long as it may.
All requests of a call show one slate to different users, as a carousel does.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.timing import time_call, time_interleaved
from gr2_jax.data.market import MarketConfig, make_market
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.runs.versions import describe_machine
from gr2_jax.serving.request import MODES, Ranking, Request
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.serving.written import WrittenPolicy

BATCHES = (1, 4, 16, 64)
SLATE, HISTORY, CODES = 10, 12, 64
LENGTHS = (48, 96, 128)  # of histories, slates and whole prompts
STYLE = PromptStyle(
  order="candidates_first",
  reference="sid",
  item_fields=("category", "brand"),
  history_fields=(),
  hints=("upstream_rank",),
  max_history=HISTORY,
  max_prompt_tokens=126,
)


def run(batches: tuple[int, ...] = BATCHES, rounds: int = 5) -> Iterator[dict[str, Any]]:
  """Yields the machine, the lengths of prompts, and a line for each mode, number of requests and way to treat the slate."""
  yield {"machine": describe_machine(("jax", "numpy"))}
  rerankers = {"whole": make_reranker(max(batches), 0), "reused": make_reranker(max(batches), max(batches))}
  row = rerankers["reused"].prepare(make_requests(1, "score")[0]).rows[0]
  yield {"slate_tokens": row.shared, "history_tokens": len(row.tokens) - row.shared}
  for mode in MODES:
    for batch in batches:
      yield from _measure(rerankers, mode, batch, rounds)


def make_reranker(
  batch: int, prefix_cache: int, size: str = "tiny", lengths: tuple[int, ...] = LENGTHS, modes: tuple[str, ...] = MODES
) -> Reranker:
  """A re-ranker of a preset over the default market's items, of fresh weights, for batches of 1, 4, 16, .. `batch`."""
  catalogue = make_market(MarketConfig(train_slates=1, validation_slates=1, test_slates=1), seed=0).catalogue
  vocabulary = Vocabulary.train(corpus_texts(catalogue), text_pieces=512, num_levels=3, codebook_size=CODES, num_candidates=SLATE)
  codes = np.random.default_rng(0).integers(CODES, size=(len(catalogue), 3))
  decoder = Decoder(preset(size, vocabulary.size))
  options = Options(mode=modes[0], modes=modes, batch_size=batch, prompt_lengths=lengths, prefix_cache=prefix_cache)
  context = PromptContext(catalogue, codes, vocabulary)
  return Reranker(WrittenPolicy(decoder, init_params(decoder, jax.random.key(1)), context, STYLE, max_new_tokens=64, options=options))


def make_requests(count: int, mode: str) -> list[Request]:
  """One slate, shown to `count` users with histories of their own."""
  random = np.random.default_rng(0)

  def draw(size: int) -> tuple[str, ...]:
    return tuple(f"item{n:04}" for n in random.permutation(200)[:size])

  candidates = draw(SLATE)
  return [Request(draw(HISTORY), candidates, mode=mode) for _ in range(count)]


def _measure(rerankers: Mapping[str, Reranker], mode: str, batch: int, rounds: int) -> Iterator[dict[str, Any]]:
  requests = make_requests(batch, mode)
  index = rerankers["reused"].engine.index

  def first_time() -> list[Ranking]:
    index.clear()
    return rerankers["reused"].rank_batch(requests)

  ways = {
    "whole": lambda: rerankers["whole"].rank_batch(requests),
    "reused": lambda: rerankers["reused"].rank_batch(requests),
    "reused, first time": first_time,
  }
  results = {way: time_call(call)[1] for way, call in ways.items()}
  orders = {way: [ranking.order for ranking in result] for way, result in results.items()}
  assert orders["whole"] == orders["reused"] == orders["reused, first time"], f"{mode}: the orders differ"
  assert not any(ranking.fallback for result in results.values() for ranking in result)
  assert all((ranking.reasoning is None) == (mode != "reason") for ranking in results["whole"]), f"{mode}: reasoned or not against its name"
  medians = time_interleaved(ways, rounds)
  for way, median in medians.items():
    yield {
      "case": f"{mode} x{batch}",
      "slate": way,
      "rounds": rounds,
      "ms": round(1000 * median.wall, 2),
      "ms_per_slate": round(1000 * median.wall / batch, 3),
      "slates_per_s": round(batch / median.wall, 1),
      "processor_ms_per_slate": round(1000 * median.processor / batch, 3),
      "times_whole_processor": round(median.processor / medians["whole"].processor, 3),
    }
