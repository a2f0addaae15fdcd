"""The points of `latency.json`: what each policy, mode and compressor of a run costs a request, and how good its orders are."""

import itertools
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gr2_jax.compression.compressor import check_compressor, compressors_of
from gr2_jax.data.schema import Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.evaluation.paired import paired_bootstrap
from gr2_jax.files import write_json
from gr2_jax.reports.latency import FULL_HISTORIES
from gr2_jax.runs.load import load_catalogue, load_slates
from gr2_jax.runs.policies import PolicyRecord, read_policies
from gr2_jax.runs.run import Run, RunError
from gr2_jax.runs.versions import describe_machine
from gr2_jax.serving.request import MODES, Request
from gr2_jax.serving.reranker import Options, Reranker, find_served, open_policies
from gr2_jax.training.progress import Progress, Task


class Setting(NamedTuple):
  """What one point measures: the `policy` asked in a `mode`, in so many `presentations`; `compressor` FULL_HISTORIES: histories in full."""

  policy: PolicyRecord
  compressor: str
  mode: str
  presentations: int


def choose_settings(
  policies: Sequence[PolicyRecord],
  compressors: Sequence[str],
  modes: Sequence[str] | None,
  presentations: Sequence[int],
  *,
  force: bool = False,
) -> list[Setting]:
  """The points of a run, of all that could be combined the ones that say something.

  Every policy on full histories in those of `modes` (None: all) that it was trained for, or with `force` can be asked in: a direct one
  never reasons. Compressed histories in the first mode that the policy was trained for, or the first where that is not measured. More than
  one presentation to the first policy in that mode, on full histories. Scored policies answer in one mode, whatever the presentation, and
  read no history that could be compressed.
  """
  settings = []
  for policy in policies:
    written = policy.form == "written"
    forced = [mode for mode in MODES if force and written and (mode != "reason" or policy.mode == "reason")]
    possible = [mode for mode in MODES if mode in policy.trained or mode in forced]
    answered = [mode for mode in possible if modes is None or mode in modes]
    main = policy.mode if policy.mode in answered else next(iter(answered), None)
    for compressor, mode, count in itertools.product(compressors, answered, presentations):
      full = compressor == FULL_HISTORIES
      if not written and not (full and count == 1):
        continue
      if (mode == main or full) and (count == 1 or (mode == main and full and policy is policies[0])):
        settings.append(Setting(policy, compressor, mode, count))
  return settings


def find_settings(
  run: Run,
  stages: Sequence[str] | None,
  compressors: Sequence[str] | None,
  *,
  strict: bool,
  modes: Sequence[str] | None,
  presentations: Sequence[int],
  force: bool = False,
) -> list[Setting]:
  """Settings of the named stages and compressors; None: all stages whose policy is no prior; full histories and all the run's variants.

  Raises RunError for a named one that the run lacks, and unless to `force` it for a named mode in which none of the policies was trained
  to answer, or, where the run need not have all (not `strict`), leaves it out; and without any.
  """
  has = (FULL_HISTORIES, *compressors_of(run))
  if strict:
    for stage in stages or ():
      find_served(run, stage)
    for variant in compressors or ():
      if variant != FULL_HISTORIES:
        check_compressor(run, variant)
  left = {policy.stage: policy for policy in reversed(read_policies(run))}  # each stage's first
  named = stages or [stage for stage, policy in reversed(left.items()) if not policy.prior]
  chosen = [left[stage] for stage in named if stage in left]
  for policy in chosen:
    find_served(run, policy.stage)  # raises for what is damaged
  trained = list(dict.fromkeys(mode for policy in chosen for mode in policy.trained))
  untrained = [mode for mode in modes or () if mode not in trained]
  if strict and untrained and chosen and not force:
    raise RunError(
      f"modes: the policies of {', '.join(named)} were trained to answer in the mode {', '.join(trained)}, not in {untrained[0]!r}; "
      "leave it out, or measure it with --force, outside the Pareto front"
    )
  settings = choose_settings(chosen, [name for name in compressors or has if name in has], modes, presentations, force=force)
  if not settings:
    raise RunError(
      f"stages: {run.directory} has nothing to measure of {', '.join(named) or 'any stage'} in the modes {', '.join(modes or MODES)}; "
      f"it has policies of {', '.join(reversed(left)) or 'no stage'}: name one of these, or modes that they answer in"
    )
  return settings


def measure(
  run: str,
  compare: Sequence[str],
  *,
  stages: Sequence[str] | None,
  compressors: Sequence[str] | None,
  modes: Sequence[str] | None,
  presentations: Sequence[int],
  force: bool = False,
  requests: int,
  batch_size: int,
  progress: Progress,
) -> pathlib.Path:
  """Writes `RUN/evaluation/latency.json` of `run` with the points of all runs, and returns its path.

  `stages`, `compressors`, `modes`, `force`: see `find_settings`; runs to `compare` are measured by what they have of them. `requests` are
  timed one by one for a point; all test slates are ranked for its R@1, `batch_size` at a time. Raises RunError where test slates differ,
  before any is measured, and what `find_settings` raises.
  """
  plans: list[tuple[Run, list[Setting]]] = []
  slates: tuple[Slate, ...] = ()
  for directory in (run, *compare):
    saved = Run.open(directory)
    settings = find_settings(saved, stages, compressors, strict=directory == run, modes=modes, presentations=presentations, force=force)
    own = load_slates(saved, load_catalogue(saved), "test")[: saved.config.evaluation.max_slates]
    slates = slates or own
    if [s.candidates for s in own] != [s.candidates for s in slates]:
      raise RunError(f"{directory} has other test slates than {run}; compare runs of the same data and slates")
    plans.append((saved, settings))
  points = [
    point
    for saved, settings in plans
    for point in measure_run(saved, settings, slates, requests=requests, batch_size=batch_size, progress=progress)
  ]
  labels = slate_labels(slates)
  upstream = _quality(np.where(labels < 0, -1, np.arange(labels.shape[1])), labels)
  path = pathlib.Path(run) / "evaluation" / "latency.json"
  write_json(path, {"machine": describe_machine(("jax",)), "upstream": upstream, "points": points})
  return path


def measure_run(
  run: Run, settings: Sequence[Setting], slates: Sequence[Slate], *, requests: int, batch_size: int, progress: Progress
) -> list[dict[str, Any]]:
  """The points of one run."""
  rerankers = _load_all(run, settings, batch_size)
  points: list[dict[str, Any]] = []
  timed: list[tuple[Reranker, list[Request]]] = []
  with progress.task(f"latency: {run.directory.name}", len(settings) * len(slates), "slates") as task:
    for setting in settings:
      policy, reranker = setting.policy, rerankers[setting[:2]]
      asked = [
        Request(
          s.history,
          s.candidates,
          timestamp=s.timestamp,
          mode=setting.mode,
          presentations=setting.presentations,
          upstream_scores=s.upstream_scores,
          last_time=s.last_time,
        )
        for s in slates
      ]
      asked_as = {"compressor": setting.compressor, "mode": setting.mode, "presentations": setting.presentations}
      asked_as["trained"] = setting.mode in policy.trained
      point = {"run": str(run.directory), "preset": run.config.model.preset, "stage": policy.stage, "title": policy.rankers[0].title}
      points.append(point | asked_as | _rank_all(reranker, asked, slates, batch_size, task))
      timed.append((reranker, asked[:requests]))
  return [point | times for point, times in zip(points, _time_one_by_one(timed), strict=True)]


def _load_all(run: Run, settings: Iterable[Setting], batch_size: int) -> dict[tuple[PolicyRecord, str], Reranker]:
  """A re-ranker for each (policy, compressor); those of a policy share its parameters."""
  load = open_policies(run)
  rerankers = {}
  for policy, compressor in dict.fromkeys(setting[:2] for setting in settings):
    own = [setting for setting in settings if setting[:2] == (policy, compressor)]
    modes, most = tuple(dict.fromkeys(setting.mode for setting in own)), max(setting.presentations for setting in own)
    options = Options(mode=modes[0], modes=modes, batch_size=batch_size, max_presentations=most)
    variant = None if compressor == FULL_HISTORIES else compressor
    rerankers[policy, compressor] = Reranker.of_policy(load(policy), compressor=variant, options=options, force=True)
  return rerankers


def _rank_all(reranker: Reranker, asked: Sequence[Request], slates: Sequence[Slate], batch_size: int, task: Task) -> dict[str, Any]:
  labels = slate_labels(slates)
  rankings = np.full(labels.shape, -1, np.int64)
  tokens: list[int] = []
  for start in range(0, len(asked), batch_size):
    for place, ranking in enumerate(reranker.rank_batch(asked[start : start + batch_size]), start):
      rankings[place, : len(ranking.order)] = [slates[place].candidates.index(id) for id in ranking.order]
      tokens.append(ranking.history_tokens)
    task.advance(len(asked[start : start + batch_size]))
  return {"history_tokens": float(np.mean(tokens)), **_quality(rankings, labels)}


def _quality(rankings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """R@1 with its interval, which one slate does not have."""
  hits = compute_metrics(rankings, labels)["recall@1"]
  of = paired_bootstrap(hits, np.zeros_like(hits), seed=0) if len(hits) > 1 else None
  interval = None if of is None else [float(of.delta_low[0]), float(of.delta_high[0])]
  return {"recall@1": float(hits.mean()), "ci95": interval, "n": len(hits)}


def _time_one_by_one(settings: Sequence[tuple[Reranker, Sequence[Request]]]) -> list[dict[str, Any]]:
  """Latencies of each setting's requests; settings take turns, so that a slow spell of the machine falls on all alike."""
  for reranker, requests in settings:
    for request in requests:  # compiles what they need, whatever their lengths
      reranker.rank_batch([request])
  times: list[list[float]] = [[] for _ in settings]
  for turn in zip(*(requests for _, requests in settings), strict=True):
    for (reranker, _), request, of_setting in zip(settings, turn, times, strict=True):
      began = time.perf_counter()
      reranker.rank_batch([request])
      of_setting.append(1000 * (time.perf_counter() - began))
  return [{"p50_ms": float(np.percentile(ms, 50)), "p95_ms": float(np.percentile(ms, 95)), "requests": len(ms)} for ms in times]
