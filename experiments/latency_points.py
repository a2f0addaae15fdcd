"""The points of `latency.json`: what each mode of a run costs a request, and how good its orders are."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.rundir import RunError, write_json
from experiments.timing import describe_machine
from gr2_jax.data.schema import Slate
from gr2_jax.evaluation.features import slate_labels
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.evaluation.paired import paired_bootstrap
from gr2_jax.serving import load
from gr2_jax.serving.request import Request
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.training.progress import Progress


def measure_run(
  directory: pathlib.Path,
  stage: str,
  modes: Sequence[str],
  presentations: Sequence[int],
  *,
  requests: int,
  batch_size: int,
  progress: Progress,
) -> tuple[list[dict[str, Any]], tuple[Slate, ...]]:
  """(points of one run, its test slates)."""
  saved = load.SavedRun.open(directory)
  options = Options(batch_size=batch_size, mode=modes[0], modes=tuple(modes), max_presentations=max(presentations))
  reranker = Reranker.load(directory, stage=stage, options=options)
  slates = load.load_slates(saved, reranker.context.catalogue, "test")[: saved.config.evaluation.max_slates or None]
  labels = slate_labels(slates)
  settings = [(mode, count) for mode in modes for count in presentations]
  points, timed = [], []
  with progress.task(f"latency: {directory.name}", len(settings) * len(slates), "slates") as task:
    for mode, count in settings:
      asked = [Request(s.history, s.candidates, timestamp=s.timestamp, mode=mode, presentations=count) for s in slates]
      rankings = np.full(labels.shape, -1, np.int64)
      for start in range(0, len(asked), batch_size):
        for place, ranking in enumerate(reranker.rank_batch(asked[start : start + batch_size]), start):
          rankings[place, : len(ranking.order)] = [slates[place].candidates.index(id) for id in ranking.order]
        task.advance(len(asked[start : start + batch_size]))
      of = {"run": str(directory), "preset": saved.config.model.preset, "stage": stage, "mode": mode, "presentations": count}
      points.append(of | _quality(rankings, labels))
      timed.append(asked[:requests])
  return [point | times for point, times in zip(points, _time_one_by_one(reranker, timed), strict=True)], slates


def _quality(rankings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  hits = compute_metrics(rankings, labels)["recall@1"]
  interval = paired_bootstrap(hits, np.zeros_like(hits), seed=0)
  return {"recall@1": float(hits.mean()), "ci95": [float(interval.delta_low[0]), float(interval.delta_high[0])], "n": len(hits)}


def _time_one_by_one(reranker: Reranker, settings: Sequence[Sequence[Request]]) -> list[dict[str, Any]]:
  """Latencies of each setting's requests; settings take turns, so that a slow spell of the machine falls on all alike."""
  for requests in settings:
    reranker.rank_batch(requests[:1])  # compiles
  times: list[list[float]] = [[] for _ in settings]
  for turn in zip(*settings, strict=True):
    for request, of_setting in zip(turn, times, strict=True):
      began = time.perf_counter()
      reranker.rank_batch([request])
      of_setting.append(1000 * (time.perf_counter() - began))
  return [{"p50_ms": float(np.percentile(ms, 50)), "p95_ms": float(np.percentile(ms, 95)), "requests": len(ms)} for ms in times]


def measure(run: str, compare: Sequence[str], **settings: Any) -> pathlib.Path:
  """Writes `latency.json` of `run` with the points of all runs; raises RunError where their test slates differ."""
  points, slates = measure_run(pathlib.Path(run), **settings)
  for other in compare:
    more, others = measure_run(pathlib.Path(other), **settings)
    if [s.candidates for s in others] != [s.candidates for s in slates]:
      raise RunError(f"--compare: {other} has other test slates than {run}; compare runs of the same data and slates")
    points += more
  labels = slate_labels(slates)
  upstream = _quality(np.where(labels < 0, -1, np.arange(labels.shape[1])), labels)
  path = pathlib.Path(run) / "evaluation" / "latency.json"
  write_json(path, {"machine": describe_machine(("jax",)), "upstream": upstream, "points": points})
  return path
