"""Rankers of the whole catalogue side by side: what a run's mid-trained model of packed items retrieves, and what others do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gr2_jax.data.schema import Catalogue
from gr2_jax.data.slates import latest_rows
from gr2_jax.data.splits import NextItem, Split
from gr2_jax.errors import UserError
from gr2_jax.evaluation.retrieval import compare_retrieval, draw_users, ranks_by_row
from gr2_jax.evidence.items import unit_vectors
from gr2_jax.files import write_json
from gr2_jax.models.sasrec import SasrecConfig, fit_sasrec, sasrec_scores
from gr2_jax.models.transition_graph import TransitionGraph
from gr2_jax.rollout.catalogue_scores import make_dense_scores, make_packed_beam_scores, reorder_beams
from gr2_jax.runs.load import load_catalogue, load_split
from gr2_jax.runs.packed_midtraining import load_packed_items
from gr2_jax.runs.run import Run
from gr2_jax.training.interrupts import StopSignal
from gr2_jax.training.mesh import make_mesh
from gr2_jax.training.progress import Progress

DENSE, BEAMS, REORDERED, BOTH = "dense head", "beams", "beams by the dense head", "beams by both"
GRAPH, SASREC = "transition graph with text", "SASRec with text"
PAIRS = ((DENSE, GRAPH), (DENSE, SASREC), (REORDERED, BEAMS), (BOTH, REORDERED), (REORDERED, DENSE))

ScoreRows = Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]


def measure_retrieval(
  directory: str,
  progress: Progress,
  stop: StopSignal,
  *,
  beams: int,
  beam_weight: float,
  users: int | None,
  split: str,
  sasrec: bool,
) -> dict[str, Any]:
  """Writes and returns `retrieval.json` of the run, as the flags say; raises UserError where its model cannot be asked."""
  run = Run.open(directory)
  _check(run)
  catalogue = load_catalogue(run)
  of_log = load_split(run, catalogue)
  requests: Sequence[NextItem] = of_log.test if split == "test" else of_log.validation
  if len(requests) < 2:
    raise UserError(f"--run: of the log of {directory} {len(requests)} users have three items or more, and an interval needs two")
  requests = draw_users(requests, users, run.config.seed)
  score_rows = _of_mid_training(run, catalogue, beams, beam_weight)
  others = [_of_graph(run, catalogue, of_log)] + ([_of_sasrec(run, catalogue, of_log, progress, stop)] if sasrec else [])
  with progress.task("retrieve", len(requests), "users") as task:

    def report(count: int) -> None:
      stop.check()
      task.update(task.done + count)

    def score_all(histories: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
      for score in (score_rows, *others):
        yield from score(histories)

    ranks = ranks_by_row(score_all, requests, catalogue, on_progress=report)
  pairs = [pair for pair in PAIRS if ranks.keys() >= {*pair}]
  found = {"split": split, "beams": beams, "beam_weight": beam_weight} | compare_retrieval(ranks, pairs, seed=run.config.seed)
  write_json(run.directory / "retrieval.json", found)
  return found


def _check(run: Run) -> None:
  if run.config.midtrain.form != "packed":
    raise UserError(f"--run: {run.directory} is mid-trained on tokens; give a run of midtrain.form packed")
  if run.config.midtrain.packed.whole_log:
    raise UserError(f"--run: the model of {run.directory} has learnt the targets (midtrain.packed.whole_log); give a run without")
  if not run.is_done("midtrain"):
    raise UserError(f"--run: {run.directory} has no finished stage 'midtrain'; run that first")


def _of_mid_training(run: Run, catalogue: Catalogue, beams: int, beam_weight: float) -> ScoreRows:
  packed = load_packed_items(run, catalogue, make_mesh(**run.config.mesh))
  max_history = run.config.midtrain.max_history
  dense_scores = make_dense_scores(*packed, max_history=max_history)
  beam_scores = make_packed_beam_scores(*packed, beams=beams, max_history=max_history)

  def score_rows(histories: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    dense, found = dense_scores(histories), beam_scores(histories)
    yield DENSE, dense
    yield BEAMS, found
    yield REORDERED, reorder_beams(found, dense)
    yield BOTH, reorder_beams(found, dense, beam_weight)

  return score_rows


def _of_graph(run: Run, catalogue: Catalogue, split: Split) -> ScoreRows:
  graph = TransitionGraph.fit(split.train, catalogue, np.load(run.path("tokenize", "vectors.npy")))
  return lambda histories: iter([(GRAPH, graph.catalogue_scores(histories))])


def _of_sasrec(run: Run, catalogue: Catalogue, split: Split, progress: Progress, stop: StopSignal) -> ScoreRows:
  config = SasrecConfig()
  vectors = unit_vectors(catalogue, np.load(run.path("tokenize", "vectors.npy")))
  rows = [np.asarray(catalogue.to_rows(history.items)) for history in split.train]
  with progress.task(SASREC, config.epochs, "epochs") as task:

    def report(epoch: int, loss: float) -> None:
      task.update(epoch, {"loss": loss})
      stop.check()

    params = fit_sasrec(rows, vectors, config, run.config.seed, report)

  def score_rows(histories: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield SASREC, np.asarray(sasrec_scores(params, latest_rows(histories, config.max_history), config))

  return score_rows
