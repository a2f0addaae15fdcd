"""Stage `traces`: a teacher reasons over the training slates; every attempt is kept with its verdict."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError, Slate
from gr2_jax.errors import ConfigError
from gr2_jax.evidence.patterns import fit_patterns
from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.rl.options import PRESENTATIONS
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables
from gr2_jax.runs.stages import Stage
from gr2_jax.settings import check_settings, setting
from gr2_jax.teachers.sampling import Proposal, TeacherFn, TraceRequest, acceptance_by_rank, rejection_traces, targeted_traces, write_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher
from gr2_jax.teachers.tree_reasons import Look, TreeView, make_tree_teacher

_ASKED = 256  # slates at once


@dataclasses.dataclass(frozen=True)
class TracesOptions:
  """How the teacher is asked. Raises ValueError."""

  source: str = setting(
    "scripted",
    "who reasons: fixed rules, which saw no label; or the out-of-fold tree, which saw labels of other users, in the facts of prompt.facts",
    choices=("scripted", "tree"),
  )
  sampling: str = setting(
    "rejection",
    "rejection: the teacher sees no label, and reasonings whose answer is right are kept (Eq 2); targeted: it is shown the label (Eq 1)",
    choices=("rejection", "targeted"),
  )
  attempts: int = setting(8, "attempts at a slate, until one is accepted", low=1)
  temperature: float = setting(0.8, "temperature of the teacher; 0: its best order", low=0)
  presentation: str = setting("shuffled", "the order in which candidates are shown", choices=PRESENTATIONS)
  max_slates: int | None = setting(None, "training slates that are asked about; None: all", unit="slates", low=1)
  teacher: TeacherWeights = setting(TeacherWeights(), "what the scripted teacher goes by: weights of what it looks at in a candidate")

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
  if stage.options.source == "tree":
    return make_tree_teacher(_look_ahead(stage) if stage.foreseen else _look(stage), stage.prompts, stage.style)
  return make_scripted_teacher(fit_patterns(stage.log, stage.catalogue), stage.prompts, stage.style, stage.options.teacher)


def _look(stage: StageContext) -> Look:
  """What the tree that saw no slate of its user makes of a training slate."""
  tables = FactTables(stage.run)
  trees, scores, facts = tables.trees, tables.teacher, tables.read("train")
  row_of = {slate: row for row, slate in enumerate(stage.slates("train"))}
  shown = [tables.codes.names.index(name) for name in stage.style.facts]

  def look(slates: Sequence[Slate]) -> list[TreeView]:
    rows = np.array([row_of[slate] for slate in slates])
    added = trees.contributions(rows, facts[rows])[..., shown]
    sizes = [len(slate.candidates) for slate in slates]
    return [TreeView(scores[row, :size], of[:size]) for row, size, of in zip(rows, sizes, added, strict=True)]

  return look


def _look_ahead(stage: StageContext) -> Look:
  """Anything, while there is no tree yet."""
  rng, width = np.random.default_rng(stage.seed), len(stage.style.facts)

  def look(slates: Sequence[Slate]) -> list[TreeView]:
    return [TreeView(rng.normal(size=len(slate.candidates)), rng.normal(size=(len(slate.candidates), width))) for slate in slates]

  return look


def check(config: ConfigDict) -> None:
  """The tree must be there, and have facts to speak of."""
  if config.traces.source != "tree":
    return
  if not config.evidence.tree.enabled:
    raise ConfigError("--config.traces.source: 'tree' needs the out-of-fold tree; set evidence.tree.enabled to True, or use scripted")
  if not config.prompt.facts:
    raise ConfigError("--config.traces.source: 'tree' gives its reasons in the facts of prompts, and prompt.facts names none; name some")


STAGE = Stage(
  "traces",
  run,
  reads=("seed", "prompt", "traces"),
  options=TracesOptions,
  inputs=("data", "tokenize", "slates", "evidence"),
  check=check,
  format=2,  # a tree's reasons name the candidate before its facts
)
