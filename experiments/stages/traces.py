"""Stage `traces`: a teacher reasons over the training slates; every attempt is kept with its verdict."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gr2_jax.data.schema import DataError
from gr2_jax.evidence.patterns import fit_patterns
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.rl.options import PRESENTATIONS
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, setting
from gr2_jax.teachers.sampling import Proposal, TeacherFn, TraceRequest, acceptance_by_rank, rejection_traces, targeted_traces, write_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher

_ASKED = 256  # slates at once


@dataclasses.dataclass(frozen=True)
class TracesOptions:
  """How the teacher is asked. Raises ValueError."""

  sampling: str = setting(
    "rejection", "by a teacher that sees no label (Eq 2), or one that is shown it (Eq 1)", choices=("rejection", "targeted")
  )
  attempts: int = setting(8, "at a slate, until one is accepted", low=1)
  temperature: float = setting(0.8, "of the teacher", low=0)
  presentation: str = setting("shuffled", "how candidates are shown", choices=PRESENTATIONS)
  max_slates: int | None = setting(None, "of training; None: all", unit="slates", low=1)
  teacher: TeacherWeights = setting(TeacherWeights(), "what the scripted teacher goes by")

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `traces.jsonl` and `acceptance.json` (asked and accepted by the target's upstream rank, verdicts by reason)."""
  options, context, style = stage.options, stage.prompts, stage.style
  slates = stage.slates("train")[: options.max_slates]
  shown = [present(len(slate.candidates), options.presentation, (stage.seed, i, 0)) for i, slate in enumerate(slates)]
  teach = make_teacher(stage)
  with stage.task("traces", len(slates), "first attempts") as task:

    def counted(requests: Sequence[TraceRequest]) -> list[Proposal]:
      proposals: list[Proposal] = []
      for start in range(0, len(requests), _ASKED):
        stage.stop.check()
        proposals += teach(requests[start : start + _ASKED])
        task.update(min(task.done + len(proposals[start:]), task.total))
      return proposals

    sample = {"seed": stage.seed, "temperature": options.temperature}
    if options.sampling == "rejection":
      traces = rejection_traces(slates, shown, counted, context, style, attempts=options.attempts, **sample)
    else:
      traces = targeted_traces(slates, shown, counted, context, style, **sample)
  write_traces(stage.path("traces.jsonl"), traces)
  asked, accepted = acceptance_by_rank(slates, traces)
  if not accepted.sum():
    raise DataError("traces: not one was accepted; raise config.traces.attempts, or use targeted sampling")
  reasons, counts = np.unique([trace.reason for trace in traces], return_counts=True)
  report = {
    "sampling": options.sampling,
    "slates": len(slates),
    "attempts": len(traces),
    "accepted": int(accepted.sum()),
    "asked_by_upstream_rank": asked.tolist(),
    "accepted_by_upstream_rank": accepted.tolist(),
    "reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
  }
  write_json(stage.path("acceptance.json"), report)
  stage.say(f"{report['accepted']:,} of {len(slates):,} slates have an accepted trace ({len(traces):,} attempts)")


def make_teacher(stage: StageContext) -> TeacherFn:
  """The teacher of the stage."""
  return make_scripted_teacher(fit_patterns(stage.log, stage.catalogue), stage.prompts, stage.style, stage.options.teacher)


STAGE = Stage("traces", run, reads=("seed", "prompt", "traces"), options=TracesOptions, inputs=("data", "tokenize", "slates"))
