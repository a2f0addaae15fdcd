"""Stage `sft`: supervised fine-tuning on accepted traces, reasoning and answer weighed apart (Eq 3)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_choice, check_training
from gr2_jax.compression.rules import shorten_at_random
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError, Slate
from gr2_jax.errors import ConfigError
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import PromptStyle, present, render_prompt
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rl.options import PRESENTATIONS
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.stages import Stage
from gr2_jax.runs.training import train_lm
from gr2_jax.teachers.sampling import Trace, read_traces

MOST_LEFT_OUT = 0.1  # share of traces too long for a row above which the row length is wrong


def run(stage: StageContext) -> None:
  """Trains the mid-trained model on prompt + trace, loss on the assistant's tokens only; writes checkpoints.

  With `sft.without_reasoning` once more on the answers alone; that policy's checkpoints lie in `without_reasoning`.
  """
  traces = [trace for trace in read_traces(stage.run.path("traces", "traces.jsonl")) if trace.accepted]
  _teach(stage, traces, stage.style, "checkpoints")
  if stage.options.without_reasoning:
    _teach(stage, traces, stage.direct_style, "without_reasoning")


def _teach(stage: StageContext, traces: Sequence[Trace], style: PromptStyle, name: str) -> None:
  options = stage.options
  full = functools.partial(_to_example, stage, style, 0.0)
  batches = make_pipeline(
    _that_fit(stage, traces, full),
    seed=stage.seed,
    batch_size=options.batch_size,
    map_fn=functools.partial(_to_example, stage, style, options.compressed_share),
    pack_length=options.row_length,
    pad_id=stage.vocabulary.pad_id,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  parts = {"reasoning": options.reasoning_weight, "answer": options.answer_weight}
  train_lm(stage, stage.name, batches, parts, init=stage.checkpoints("midtrain"), constraint=stage.constraint(style), name=name)


def _to_example(
  stage: StageContext, style: PromptStyle, compressed_share: float, trace: Trace, rng: np.random.Generator
) -> dict[str, list[Any]]:
  """Tokens, their parts and the slate's weight; names in a reshuffled trace follow their candidates."""
  slate, context = stage.slates("train")[trace.slate_index], stage.prompts
  shown, reasoning = np.asarray(trace.shown), list(trace.reasoning)
  if stage.options.presentation == "shuffled":
    shown, reasoning = _reshuffle(trace, slate, stage.vocabulary, rng)
  history = shorten_at_random(slate, context, style, rng) if rng.random() < compressed_share else None
  prompt = render_prompt(slate, shown, context, style, history).tokens
  codes = context.codes[stage.catalogue.to_rows(slate.candidates)]
  assert trace.ranking is not None  # of an accepted trace
  completion = render_answer(trace.ranking, shown, reasoning, stage.vocabulary, style, codes)
  tokens = prompt + completion.tokens
  return {"tokens": tokens, "parts": [0] * len(prompt) + completion.parts, "weights": [float(slate.weight)] * len(tokens)}


def _that_fit(
  stage: StageContext, traces: Sequence[Trace], to_example: Callable[[Trace, np.random.Generator], Mapping[str, Any]]
) -> list[Trace]:
  """The traces whose example fits a row, whatever the order of its candidates, which changes no length; found before training starts."""
  rng, row_length = np.random.default_rng(0), stage.options.row_length
  lengths = np.array([len(to_example(trace, rng)["tokens"]) for trace in traces])
  too_long = lengths > row_length
  if too_long.mean() > MOST_LEFT_OUT:
    raise DataError(
      f"config.sft.row_length: {row_length} is too short for {too_long.sum():,} of {len(traces):,} traces, "
      f"of which the longest has {lengths.max()} tokens"
    )
  if too_long.any():
    stage.progress.note(f"sft: {too_long.sum():,} of {len(traces):,} traces are longer than sft.row_length {row_length} and left out")
  return [trace for trace, out in zip(traces, too_long, strict=True) if not out]


def _reshuffle(trace: Trace, slate: Slate, vocabulary: Vocabulary, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
  """The same trace under a new order of the candidates: names in the reasoning follow their candidates to the new slots."""
  shown = present(len(slate.candidates), "shuffled", (int(rng.integers(2**31)), trace.slate_index, 0))
  slot_of = {int(candidate): slot for slot, candidate in enumerate(shown)}
  first = int(vocabulary.candidate_tokens[0])
  rename = {first + slot: first + slot_of[int(candidate)] for slot, candidate in enumerate(trace.shown)}
  return shown, [rename.get(token, token) for token in trace.reasoning]


def check(config: ConfigDict) -> None:
  """Weights of the parts, the share of shortened histories, the presentation, the optimizer."""
  sft = config.sft
  check_choice(config, "sft.presentation", PRESENTATIONS)
  if not 0 <= sft.compressed_share <= 1:
    raise ConfigError(f"--config.sft.compressed_share: {sft.compressed_share} must be a share, 0 to 1")
  if not 0 <= sft.reasoning_weight < sft.answer_weight:
    raise ConfigError(
      f"--config.sft.reasoning_weight: {sft.reasoning_weight} must be below answer_weight {sft.answer_weight} (Eq 3: λ_r < λ_o)"
    )
  check_training(config, "sft")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Rows of a batch."""
  return {"sft.batch_size": (config.sft.batch_size, 1)}


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The SFT policy, and the one that was taught without reasoning."""
  taught = PolicyRecord("sft", (RankerRecord("sft", "SFT policy", "direct" if config.prompt.direct else "reason"),), prior=True)
  if not config.sft.without_reasoning:
    return (taught,)
  return taught, PolicyRecord("sft", (RankerRecord("sft_direct", "SFT without reasoning", "direct"),), checkpoints="without_reasoning")


STAGE = Stage(
  "sft",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "sft"),
  inputs=("data", "tokenize", "midtrain", "slates", "traces"),
  when="sft.without_reasoning",
  check=check,
  batches=batches,
  policies=policies,
)
