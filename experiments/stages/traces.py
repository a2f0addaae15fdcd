"""Stage `traces`: a teacher reasons over the training slates; every attempt is kept with its verdict."""

import numpy as np

from gr2_jax.data.schema import DataError
from gr2_jax.evidence.patterns import fit_patterns
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.runs.artifacts import load_catalogue, load_context, load_log, load_slates, prompt_style
from gr2_jax.teachers.sampling import acceptance_by_rank, rejection_traces, targeted_traces, write_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher


def run(config, run, progress, stop):
  """Writes `traces.jsonl` and `acceptance.json` (asked and accepted by the target's upstream rank, verdicts by reason)."""
  options = config.traces
  catalogue = load_catalogue(run)
  log = load_log(run, catalogue)
  context, style = load_context(run, catalogue, log), prompt_style(run)
  slates = load_slates(run, catalogue, "train")[: options.max_slates or None]
  shown = [present(len(s.candidates), options.presentation, (config.seed, i, 0)) for i, s in enumerate(slates)]
  teach = make_scripted_teacher(fit_patterns(log, catalogue), context, style, TeacherWeights(**options.teacher))
  with progress.task("traces", len(slates), "first attempts") as task:

    def counted(requests):
      proposals = []
      for start in range(0, len(requests), 256):
        stop.check()
        proposals += teach(requests[start : start + 256])
        task.update(min(task.done + len(proposals[start:]), task.total))
      return proposals

    common = {"seed": config.seed, "temperature": options.temperature}
    if options.sampling == "rejection":
      traces = rejection_traces(slates, shown, counted, context, style, attempts=options.attempts, **common)
    else:
      traces = targeted_traces(slates, shown, counted, context, style, **common)
  write_traces(run.path("traces", "traces.jsonl"), traces)
  asked, accepted = acceptance_by_rank(slates, traces)
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
  if not report["accepted"]:
    raise DataError("traces: not one was accepted; raise config.traces.attempts, or use targeted sampling")
  write_json(run.path("traces", "acceptance.json"), report)
  told = f"  {report['accepted']:,} of {len(slates):,} slates have an accepted trace ({len(traces):,} attempts)"
  progress.console.print(told, highlight=False)
