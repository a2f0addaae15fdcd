"""Stage `traces`: a teacher reasons over the training slates; every attempt is kept with its verdict."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_at_least_one, check_choice
from gr2_jax.data.schema import DataError
from gr2_jax.evidence.patterns import fit_patterns
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.rl.options import PRESENTATIONS
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.teachers.sampling import Proposal, TraceRequest, acceptance_by_rank, rejection_traces, targeted_traces, write_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher

_ASKED = 256  # slates at once


def run(stage: StageContext) -> None:
  """Writes `traces.jsonl` and `acceptance.json` (asked and accepted by the target's upstream rank, verdicts by reason)."""
  options, context, style = stage.options, stage.prompts, stage.style
  slates = stage.slates("train")[: options.max_slates]
  shown = [present(len(slate.candidates), options.presentation, (stage.seed, i, 0)) for i, slate in enumerate(slates)]
  teach = make_scripted_teacher(fit_patterns(stage.log, stage.catalogue), context, style, TeacherWeights(**options.teacher))
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


def check(config: ConfigDict) -> None:
  """How traces are sampled, and how slates are shown to the teacher."""
  check_choice(config, "traces.sampling", ("rejection", "targeted"))
  check_choice(config, "traces.presentation", PRESENTATIONS)
  check_at_least_one(config, "traces.max_slates")


STAGE = Stage("traces", run, reads=("seed", "prompt", "traces"), inputs=("data", "tokenize", "slates"), check=check)
