"""Stage `sft`: supervised fine-tuning on accepted traces, reasoning and answer weighed apart (Eq 3)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_targets, check_training
from experiments.scored import train_on_targets
from gr2_jax.compression.rules import shorten_at_random
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError, Slate
from gr2_jax.evaluation.held_out import likelihood_of_labels, likelihood_of_rankings
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import PromptStyle, present, render_prompt
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.rl.options import PRESENTATIONS
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.scored import TARGETS, ScoredSlates, is_reasoned, mix_targets, scored_mode, thought_constraint, train_scored
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.runs.training import TrainingOptions, count_held_out, train_lm
from gr2_jax.settings import check_settings, setting, spread
from gr2_jax.steps.scored import make_imitation_loss, make_reasoned_imitation_loss
from gr2_jax.teachers.sampling import Trace, read_traces
from gr2_jax.training.state import OptimizerConfig

INIT = Init("sft.init", ("midtrain", FROM_MODEL))
MOST_LEFT_OUT = 0.1  # share of traces too long for a row above which the row length is wrong


@dataclasses.dataclass(frozen=True)
class SftOptions:
  """Fine-tuning on traces. Raises ValueError."""

  init: str = setting(
    "midtrain", "where a policy that writes starts: at the mid-trained model, or where model.init says", choices=INIT.choices
  )
  reasoning_weight: float = setting(0.1, "weight λ_r of reasonings in the loss, below that of answers (Eq 3)", low=0)
  answer_weight: float = setting(1.0, "weight λ_o of answers in the loss (Eq 3)", above=0)
  compressed_share: float = setting(
    0.0, "share of the examples whose history the rules shorten to a random number of items, for a policy that reads both", low=0, high=1
  )
  without_reasoning: bool = setting(
    False, "whether one more policy learns the answers alone; slates where it fails are the reasoning-hard ones"
  )
  targets: str = setting(
    "unlabelled",
    "what a scored policy learns: the teacher's first ranking of every slate, of which no label was asked; the rankings of accepted "
    "traces; the labels; the out-of-fold tree's scores; or half labels, half tree. A policy that reasons learns the traces' reasonings "
    "besides, with labels or the tree those of first attempts",
    choices=("unlabelled", "accepted", *TARGETS),
  )
  presentation: str = setting("shuffled", "the order in which candidates are shown", choices=PRESENTATIONS)
  batch_size: int = setting(16, "rows of an update", unit="rows", low=1)
  row_length: int = setting(512, "length of the rows into which examples are packed", unit="tokens", low=2)
  training: TrainingOptions = spread(
    TrainingOptions(500, OptimizerConfig(1e-3, schedule="cosine", warmup_steps=20, weight_decay=0.01), save_every=200)
  )

  def __post_init__(self) -> None:
    check_settings(self)
    if self.reasoning_weight >= self.answer_weight:
      raise ValueError(f"reasoning_weight: {self.reasoning_weight} must be below answer_weight {self.answer_weight} (Eq 3: λ_r < λ_o)")


def run(stage: StageContext) -> None:
  """Trains the mid-trained model on prompt + trace, loss on the assistant's tokens only; writes checkpoints.

  With `sft.without_reasoning` once more on the answers alone; that policy's checkpoints lie in `without_reasoning`.
  """
  if stage.config.answer.form == "scored":
    return _teach_scores(stage)
  traces = [trace for trace in read_traces(stage.run.path("traces", "traces.jsonl")) if trace.accepted]
  _teach(stage, traces, stage.style, "checkpoints")
  if stage.options.without_reasoning:
    _teach(stage, traces, stage.direct_style, "without_reasoning")


def _teach_scores(stage: StageContext) -> None:
  """The scorer learns from random parameters, by the rankings of traces or by targets, and where it reasons the reasonings of traces.

  The step is chosen by the validation slates' labels where targets are learnt, else by a tenth of the traces, 500 at most.
  """
  options, slates, reasoned = stage.options, ScoredSlates.load(stage, "train"), is_reasoned(stage.config)
  by_targets = options.targets in TARGETS
  if by_targets and not reasoned:
    return train_on_targets(stage, options.targets, options.batch_size)
  traces = read_traces(stage.run.path("traces", "traces.jsonl"))
  chosen = [
    trace for trace in traces if trace.ranking is not None and (trace.accepted if options.targets == "accepted" else trace.attempt == 0)
  ]
  wanted = {trace.slate_index: trace for trace in chosen}
  indices = np.random.default_rng(stage.seed).permutation(list(wanted))
  if len(indices) < 2:
    raise DataError("sft: there are fewer than two rankings of the teacher to learn from; raise traces.attempts, or bring more slates")
  if by_targets:
    cut, taught, held_out = 0, {"targets": mix_targets(stage.run, slates, options.targets)}, ScoredSlates.load(stage, "validation")
    score = likelihood_of_labels(held_out.labels, held_out.weights)
  else:
    rankings = _to_rankings(wanted, slates)
    cut, taught = count_held_out(len(indices)), {"rankings": rankings}
    held_out = slates.take(indices[:cut])
    score = likelihood_of_rankings(held_out.labels, held_out.weights, rankings[indices[:cut]])
  make_loss = make_imitation_loss
  if reasoned:
    taught |= _to_thoughts(stage, wanted, len(slates))
    opening, weight = stage.vocabulary.special("think"), options.reasoning_weight
    make_loss = functools.partial(
      make_reasoned_imitation_loss, opening=opening, reasoning_weight=weight, constraint=thought_constraint(stage.run)
    )
  train_scored(
    stage,
    make_loss,
    slates=slates.take(indices[cut:]),
    learnt={name: array[indices[cut:]] for name, array in taught.items()},
    reasoned=reasoned,
    batch_size=options.batch_size,
    score=score,
    validation=held_out,
  )


def _to_rankings(traces: Mapping[int, Trace], slates: ScoredSlates) -> np.ndarray:
  """The teacher's ranking of each slate, `[n, K]`; the upstream order where there is none."""
  rankings = np.tile(np.arange(slates.labels.shape[1], dtype=np.int32), (len(slates), 1))
  for index, trace in traces.items():
    ranking = trace.ranking or ()
    rankings[index, : len(ranking)] = ranking
  return rankings


def _to_thoughts(stage: StageContext, traces: Mapping[int, Trace], slates: int) -> dict[str, np.ndarray]:
  """`thoughts, thought_mask [n, 1, L]`: the reasoning about each slate with the token that ends it, nothing where there is none."""
  ending = stage.vocabulary.special("/think")
  length = max(len(trace.reasoning) for trace in traces.values()) + 1
  thoughts = np.full((slates, 1, length), stage.vocabulary.pad_id, np.int32)
  mask = np.zeros(thoughts.shape, bool)
  for index, trace in traces.items():
    tokens = [*trace.reasoning, ending]
    thoughts[index, 0, : len(tokens)], mask[index, 0, : len(tokens)] = tokens, True
  return {"thoughts": thoughts, "thought_mask": mask}


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
  train_lm(stage, stage.name, batches, parts, init=stage.start(options.init), constraint=stage.constraint(style), name=name)


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
  too_long, fault = _find_too_long(stage, traces, to_example)
  if too_long.mean() > MOST_LEFT_OUT:
    raise DataError(fault)
  if too_long.any():
    stage.progress.note(f"sft: {too_long.sum():,} of {len(traces):,} traces are longer than a row and left out")
  return [trace for trace, out in zip(traces, too_long, strict=True) if not out]


def _find_too_long(
  stage: StageContext, traces: Sequence[Trace], to_example: Callable[[Trace, np.random.Generator], Mapping[str, Any]]
) -> tuple[np.ndarray, str]:
  """Which traces `[n]` do not fit a row, and the fault that this is where they are too many."""
  rng, row_length = np.random.default_rng(0), stage.options.row_length
  lengths = np.array([len(to_example(trace, rng)["tokens"]) for trace in traces])
  too_long = lengths > row_length
  fault = f"--config.sft.row_length: {row_length} is too short for {too_long.sum():,} of {len(traces):,} traces"
  return too_long, f"{fault}, of which the longest has {lengths.max(initial=0)} tokens; raise it"


def _reshuffle(trace: Trace, slate: Slate, vocabulary: Vocabulary, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
  """The same trace under a new order of the candidates: names in the reasoning follow their candidates to the new slots."""
  shown = present(len(slate.candidates), "shuffled", (int(rng.integers(2**31)), trace.slate_index, 0))
  slot_of = {int(candidate): slot for slot, candidate in enumerate(shown)}
  first = int(vocabulary.candidate_tokens[0])
  rename = {first + slot: first + slot_of[int(candidate)] for slot, candidate in enumerate(trace.shown)}
  return shown, [rename.get(token, token) for token in trace.reasoning]


def check(config: ConfigDict) -> None:
  """The optimizer, and where targets come from."""
  check_training(config, "sft")
  if config.answer.form == "scored":
    check_targets(config, "sft")


def foresee(stage: StageContext) -> list[str]:
  """Rows in which prompts with their traces find room."""
  if stage.foreseen is None or not stage.foreseen.traces or stage.config.answer.form == "scored":
    return []
  traces = stage.foreseen.traces
  too_long, fault = _find_too_long(stage, traces, functools.partial(_to_example, stage, stage.style, 0.0))
  # Three standard errors above the share at which the stage itself stops, since these are a sample.
  most = MOST_LEFT_OUT + 3 * np.sqrt(MOST_LEFT_OUT * (1 - MOST_LEFT_OUT) / len(traces))
  return [fault] if too_long.mean() > most else []


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Rows of a batch."""
  return {"sft.batch_size": (config.sft.batch_size, 1)}


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The SFT policy, and the one that was taught without reasoning."""
  if config.answer.form == "scored":
    return (PolicyRecord("sft", (RankerRecord("sft", "SFT policy", scored_mode(config)),), prior=True, form="scored"),)
  taught = PolicyRecord("sft", (RankerRecord("sft", "SFT policy", "direct" if config.prompt.direct else "reason"),), prior=True)
  if not config.sft.without_reasoning:
    return (taught,)
  return taught, PolicyRecord("sft", (RankerRecord("sft_direct", "SFT without reasoning", "direct"),), checkpoints="without_reasoning")


STAGE = Stage(
  "sft",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "sft"),
  options=SftOptions,
  inputs=("data", "tokenize", "slates", "evidence", "traces"),
  init=INIT,
  when="sft.without_reasoning",
  check=check,
  batches=batches,
  policies=policies,
  foresee=foresee,
)
