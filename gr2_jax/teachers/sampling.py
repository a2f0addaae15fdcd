"""Where traces come from, whoever the teacher is: targeted sampling (GR2 Eq 1), rejection sampling (Eq 2), and the verdicts on file."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gr2_jax.data import schema
from gr2_jax.files import replacing
from gr2_jax.language.prompts import PromptContext, PromptStyle


@dataclasses.dataclass(frozen=True)
class TraceRequest:
  """One question to a teacher: rank `slate`, shown as `shown [K]`, at `temperature`; `key` seeds this very sample.

  With a `target` (candidate index) the answer is shown: the teacher puts it first and explains it.
  """

  slate: schema.Slate
  shown: np.ndarray
  temperature: float
  key: tuple[int, ...]
  target: int | None = None


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A teacher's reply: reasoning tokens and a ranking of candidate indices, or None and the error kind of its answer."""

  reasoning: list[int]
  ranking: tuple[int, ...] | None
  error: str | None = None


# The one type of every teacher (scripted, a checkpoint, a chat endpoint): requests in a batch, as many proposals in their order.
TeacherFn = Callable[[Sequence[TraceRequest]], list[Proposal]]


@dataclasses.dataclass(frozen=True)
class Trace:
  """One attempt at one slate and its verdict; `reason` says why it was accepted or not. Only accepted traces are trained on."""

  slate_index: int
  shown: tuple[int, ...]
  reasoning: tuple[int, ...]
  ranking: tuple[int, ...] | None
  temperature: float
  attempt: int
  accepted: bool
  reason: str


def best_labelled(slate: schema.Slate) -> list[int]:
  """Candidate indices with the slate's highest label, the best upstream rank first."""
  return [index for index, label in enumerate(slate.labels) if label == max(slate.labels)]


def check_quotes(reasoning: Sequence[int], slate: schema.Slate, context: PromptContext, style: PromptStyle) -> str | None:
  """None when the reasoning holds only text, names of shown candidates and SIDs of the slate's items; else an error kind."""
  vocabulary = context.vocabulary
  if not vocabulary.forbidden_ids.isdisjoint(reasoning):
    return "wrong_format"
  names = [token for token in reasoning if vocabulary.candidate_start <= token < vocabulary.sid_start]
  if any(token - vocabulary.candidate_start >= len(slate.candidates) for token in names) or (names and style.reference == "sid"):
    return "unknown_item"
  codes = [token for token in reasoning if token >= vocabulary.sid_start]
  quoted = {tuple(codes[start : start + vocabulary.num_levels]) for start in range(0, len(codes), vocabulary.num_levels)}
  known = {tuple(vocabulary.sid_tokens(context.codes[row])) for row in context.catalogue.to_rows(slate.history + slate.candidates)}
  return None if quoted <= known else "unknown_item"


def targeted_traces(
  slates: Sequence[schema.Slate],
  shown: Sequence[np.ndarray],
  teacher: TeacherFn,
  context: PromptContext,
  style: PromptStyle,
  *,
  seed: int,
  temperature: float = 0.8,
) -> list[Trace]:
  """One trace for each slate by a teacher that sees the answer (Eq 1); refused only when its own answer is invalid or contradicts it."""
  targets = [best_labelled(slate)[0] for slate in slates]
  requests = [
    TraceRequest(slate, order, temperature, (seed, index, 0), target)
    for index, (slate, order, target) in enumerate(zip(slates, shown, targets, strict=True))
  ]
  return [
    _judge(index, 0, request, proposal, [target], "target_shown", context, style)
    for index, (request, proposal, target) in enumerate(zip(requests, teacher(requests), targets, strict=True))
  ]


def rejection_traces(
  slates: Sequence[schema.Slate],
  shown: Sequence[np.ndarray],
  teacher: TeacherFn,
  context: PromptContext,
  style: PromptStyle,
  *,
  seed: int,
  attempts: int = 8,
  temperature: float = 0.8,
) -> list[Trace]:
  """Every attempt by a teacher that sees no label, up to the first accepted one (Eq 2): its top-1 must carry the slate's best label.

  All slates still open are asked together, at most `attempts` times. Sorted by slate, then attempt.
  """
  if attempts < 1:
    raise ValueError(f"attempts: {attempts} must be at least 1")
  traces: list[Trace] = []
  pending = list(range(len(slates)))
  for attempt in range(attempts):
    requests = [TraceRequest(slates[index], shown[index], temperature, (seed, index, attempt)) for index in pending]
    proposals = teacher(requests) if requests else []
    verdicts = [
      _judge(index, attempt, request, proposal, best_labelled(slates[index]), "top1_is_positive", context, style)
      for index, request, proposal in zip(pending, requests, proposals, strict=True)
    ]
    traces += verdicts
    pending = [trace.slate_index for trace in verdicts if not trace.accepted]
  return sorted(traces, key=lambda trace: (trace.slate_index, trace.attempt))


def _judge(
  index: int,
  attempt: int,
  request: TraceRequest,
  proposal: Proposal,
  positives: list[int],
  success: str,
  context: PromptContext,
  style: PromptStyle,
) -> Trace:
  ranking = proposal.ranking
  if ranking is None:
    reason = proposal.error or "wrong_format"
  elif sorted(ranking) != list(range(len(request.slate.candidates))):
    reason = "missing"
  else:
    reason = check_quotes(proposal.reasoning, request.slate, context, style) or (
      success if ranking[0] in positives else "top1_is_not_positive"
    )
  shown, reasoning = tuple(map(int, request.shown)), tuple(map(int, proposal.reasoning))
  return Trace(index, shown, reasoning, ranking, request.temperature, attempt, reason == success, reason)


def acceptance_by_rank(slates: Sequence[schema.Slate], traces: Iterable[Trace]) -> tuple[np.ndarray, np.ndarray]:
  """(slates asked `[K]`, slates with an accepted trace `[K]`) by the upstream rank of the best-labelled candidate, 0 the top.

  What rejection sampling loses is seen here: the slates whose target stood low.
  """
  size = max((len(slate.candidates) for slate in slates), default=0)
  accepted_of: dict[int, bool] = {}
  for trace in traces:
    accepted_of[trace.slate_index] = accepted_of.get(trace.slate_index, False) or trace.accepted
  asked, accepted = np.zeros(size, np.int64), np.zeros(size, np.int64)
  for index, was_accepted in accepted_of.items():
    rank = best_labelled(slates[index])[0]
    asked[rank] += 1
    accepted[rank] += was_accepted
  return asked, accepted


def write_traces(path: str | pathlib.Path, traces: Iterable[Trace]) -> None:
  """Writes one JSON object a line, verdicts included; the file appears only when it is complete."""
  with replacing(path) as part, part.open("w", encoding="utf-8") as file:
    for trace in traces:
      file.write(json.dumps(dataclasses.asdict(trace)) + "\n")


def read_traces(path: str | pathlib.Path) -> list[Trace]:
  """Reads what `write_traces` wrote; raises DataError with file and line for anything else."""
  traces: list[Trace] = []
  with pathlib.Path(path).open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        trace = Trace(**json.loads(line))
        ranking = None if trace.ranking is None else tuple(map(int, trace.ranking))
        traces.append(
          dataclasses.replace(trace, shown=tuple(map(int, trace.shown)), reasoning=tuple(map(int, trace.reasoning)), ranking=ranking)
        )
      except (TypeError, ValueError) as error:
        raise schema.DataError(f"{path}:{number}: not a trace ({error}); run the traces stage again") from None
  return traces
