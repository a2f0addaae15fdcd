"""Stage `sft`: supervised fine-tuning on accepted traces, reasoning and answer weighed apart (Eq 3)."""

import functools

import jax
import numpy as np

from gr2_jax.compression.rules import shorten_at_random
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import present, render_prompt
from gr2_jax.runs.artifacts import (
  direct_style,
  load_catalogue,
  load_context,
  load_log,
  load_slates,
  make_decoder,
  prompt_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from gr2_jax.runs.training import train_lm
from gr2_jax.teachers.sampling import read_traces

MOST_LEFT_OUT = 0.1  # share of traces too long for a row above which the row length is wrong


def run(config, run, progress, stop):
  """Trains the mid-trained model on prompt + trace, loss on the assistant's tokens only; writes checkpoints.

  With `sft.without_reasoning` once more on the answers alone; that policy's checkpoints lie in `without_reasoning`.
  """
  options = config.sft
  catalogue = load_catalogue(run)
  context = load_context(run, catalogue, load_log(run, catalogue))
  slates = load_slates(run, catalogue, "train")
  traces = [trace for trace in read_traces(run.path("traces", "traces.jsonl")) if trace.accepted]
  vocabulary = context.vocabulary
  decoder, mesh = make_decoder(run, vocabulary), run_mesh(run)

  def to_example(trace, rng, style, compressed_share):
    slate = slates[trace.slate_index]
    shown, reasoning = trace.shown, trace.reasoning
    if options.presentation == "shuffled":
      shown, reasoning = _reshuffle(trace, slate, vocabulary, rng)
    history = shorten_at_random(slate, context, style, rng) if rng.random() < compressed_share else None
    prompt = render_prompt(slate, shown, context, style, history).tokens
    codes = context.codes[catalogue.to_rows(slate.candidates)]
    completion = render_answer(trace.ranking, shown, reasoning, vocabulary, style, codes)
    return {"tokens": prompt + completion.tokens, "parts": [0] * len(prompt) + completion.parts}

  def teach(style, name):
    full = functools.partial(to_example, style=style, compressed_share=0.0)
    map_fn = functools.partial(to_example, style=style, compressed_share=options.compressed_share)
    batches = make_pipeline(
      _that_fit(traces, full, options.row_length, progress),
      seed=config.seed,
      batch_size=options.batch_size,
      map_fn=map_fn,
      pack_length=options.row_length,
      pad_id=vocabulary.pad_id,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    train_lm(
      run,
      "sft",
      decoder,
      batches,
      options,
      mesh,
      key=stage_key(run, "sft"),
      init=stage_checkpoints(run, "midtrain"),
      part_names=("reasoning", "answer"),
      part_weights=(options.reasoning_weight, options.answer_weight),
      constraint=slate_constraint(run, vocabulary, style),
      name=name,
      progress=progress,
      stop=stop,
    )

  teach(prompt_style(run), "checkpoints")
  if options.without_reasoning:
    teach(direct_style(run), "without_reasoning")


def _that_fit(traces, to_example, row_length, progress):
  """The traces whose example fits a row, whatever the order of its candidates, which changes no length; found before training starts."""
  rng = np.random.default_rng(0)
  lengths = np.array([len(to_example(trace, rng)["tokens"]) for trace in traces])
  too_long = lengths > row_length
  if too_long.mean() > MOST_LEFT_OUT:
    raise DataError(
      f"config.sft.row_length: {row_length} is too short for {too_long.sum():,} of {len(traces):,} traces, "
      f"of which the longest has {lengths.max()} tokens"
    )
  if too_long.any():
    progress.note(f"sft: {too_long.sum():,} of {len(traces):,} traces are longer than sft.row_length {row_length} and left out")
  return [trace for trace, out in zip(traces, too_long, strict=True) if not out]


def _reshuffle(trace, slate, vocabulary, rng):
  """The same trace under a new order of the candidates: names in the reasoning follow their candidates to the new slots."""
  size = len(slate.candidates)
  shown = present(size, "shuffled", (int(rng.integers(2**31)), trace.slate_index, 0))
  slot_of = {int(candidate): slot for slot, candidate in enumerate(shown)}
  first = int(vocabulary.candidate_tokens[0])
  rename = {first + slot: first + slot_of[int(candidate)] for slot, candidate in enumerate(trace.shown)}
  return shown, [rename.get(token, token) for token in trace.reasoning]
