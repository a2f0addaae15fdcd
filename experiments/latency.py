"""Latency against quality: every mode of one or several runs on the test slates, as points of the card's plot.

python -m experiments.latency --run=RUN [--compare=OTHER_RUN,THIRD_RUN]

Writes `RUN/evaluation/latency.json` and makes the card again where there is one. `--compare`: runs over the same test slates, for example
students of other sizes. A point's latency is that of requests sent one after the other; R@1 is over all test slates, in batches.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from experiments.run import exit_code_of
from experiments.rundir import RunError, write_json
from experiments.timing import describe_machine
from gr2_jax.data.schema import Slate
from gr2_jax.evaluation.card import write_card
from gr2_jax.evaluation.features import slate_labels
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.evaluation.paired import paired_bootstrap
from gr2_jax.serving import load
from gr2_jax.serving.request import MODES, Request
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.training.progress import Progress

_RUN = flags.DEFINE_string("run", None, "run directory of a trained policy")
_COMPARE = flags.DEFINE_list("compare", [], "further runs over the same test slates")
_STAGE = flags.DEFINE_string("stage", "rl", "whose policies: rl or sft")
_MODES = flags.DEFINE_list("modes", list(MODES), "modes to measure")
_PRESENTATIONS = flags.DEFINE_list("presentations", ["1", "3"], "in how many orders a slate is shown")
_REQUESTS = flags.DEFINE_integer("requests", 100, "requests that are timed one by one for a point", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "slates ranked together for R@1", lower_bound=1)


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
  points = []
  with progress.task(f"latency: {directory.name}", len(settings) * len(slates), "slates") as task:
    for mode, count in settings:
      asked = [Request(s.history, s.candidates, timestamp=s.timestamp, mode=mode, presentations=count) for s in slates]
      rankings = np.full(labels.shape, -1, np.int64)
      for start in range(0, len(asked), batch_size):
        for place, ranking in enumerate(reranker.rank_batch(asked[start : start + batch_size]), start):
          rankings[place, : len(ranking.order)] = [slates[place].candidates.index(id) for id in ranking.order]
        task.advance(len(asked[start : start + batch_size]))
      of = {"run": str(directory), "preset": saved.config.model.preset, "stage": stage, "mode": mode, "presentations": count}
      points.append(of | _quality(rankings, labels) | _time_one_by_one(reranker, asked[:requests]))
  return points, slates


def _quality(rankings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  hits = compute_metrics(rankings, labels)["recall@1"]
  interval = paired_bootstrap(hits, np.zeros_like(hits), seed=0)
  return {"recall@1": float(hits.mean()), "ci95": [float(interval.delta_low[0]), float(interval.delta_high[0])], "n": len(hits)}


def _time_one_by_one(reranker: Reranker, requests: Sequence[Request]) -> dict[str, Any]:
  reranker.rank_batch(requests[:1])  # compiles
  times = []
  for request in requests:
    began = time.perf_counter()
    reranker.rank_batch([request])
    times.append(1000 * (time.perf_counter() - began))
  return {"p50_ms": float(np.percentile(times, 50)), "p95_ms": float(np.percentile(times, 95)), "requests": len(times)}


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


def main(argv):
  """Measures what the flags name."""

  def program():
    if len(argv) > 1:
      raise RunError(f"{argv[1]!r} is no flag; write --run=RUN")
    if not _RUN.value:
      raise RunError("--run is missing; for example --run=runs/quickstart")
    if not all(count.isdecimal() and int(count) for count in _PRESENTATIONS.value):
      raise RunError(f"--presentations: {','.join(_PRESENTATIONS.value)}: write whole numbers from 1 on, as in 1,3")
    progress = Progress()
    path = measure(
      _RUN.value,
      _COMPARE.value,
      stage=_STAGE.value,
      modes=_MODES.value,
      presentations=[int(count) for count in _PRESENTATIONS.value],
      requests=_REQUESTS.value,
      batch_size=_BATCH_SIZE.value,
      progress=progress,
    )
    if (path.parent / "results.json").exists():
      path = write_card(_RUN.value)
    progress.note(str(path))

  return exit_code_of(program)


if __name__ == "__main__":
  app.run(main)
