"""How a run's mid-trained model of packed items retrieves from the whole catalogue, beside rankers that are made for this alone.

    python -m experiments.retrieve --run=RUN

Test requests, items of the history masked. Rows: the dense head; beams of the semantic-ID decoder; the same beams ordered by the dense
head, and by it and their own log-probability; the transition graph with text, which needs no training; SASRec with text, trained here
(some minutes; `--nosasrec` leaves it out). Writes RUN/retrieval.json: R@5, R@10 and N@10 with 95 % intervals over users, and paired
differences.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

if TYPE_CHECKING:  # --help should not wait for JAX
  from gr2_jax.data.schema import Catalogue
  from gr2_jax.data.splits import Split
  from gr2_jax.runs.run import Run
  from gr2_jax.training.interrupts import StopSignal
  from gr2_jax.training.progress import Progress

_RUN = flags.DEFINE_string("run", None, "run directory with a finished mid-training on packed items")
_BEAMS = flags.DEFINE_integer("beams", 200, "of the search over semantic IDs", lower_bound=1)
_BEAM_WEIGHT = flags.DEFINE_float("beam_weight", 0.5, "of a beam's log-probability beside the dense head's", lower_bound=0)
_USERS = flags.DEFINE_integer("users", None, "whose requests are asked, drawn by the run's seed (all)", lower_bound=2)
_SPLIT = flags.DEFINE_enum("split", "test", ("validation", "test"), "whose requests are asked; settings are chosen on those of validation")
_SASREC = flags.DEFINE_bool("sasrec", True, "SASRec with text is trained and measured as well")
_CACHE = define_compilation_cache()

DENSE, BEAMS, REORDERED, BOTH = "dense head", "beams", "beams by the dense head", "beams by both"
GRAPH, SASREC = "transition graph with text", "SASRec with text"
PAIRS = ((DENSE, GRAPH), (DENSE, SASREC), (REORDERED, BEAMS), (BOTH, REORDERED), (REORDERED, DENSE))

ScoreRows = Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]


def main(argv: Sequence[str]) -> int:
  """Measures the run that the flag names."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --run=RUN")
    if not _RUN.value:
      raise UserError("--run is missing; for example --run=runs/beauty")
    from rich.console import Console

    from gr2_jax.training.interrupts import StopSignal
    from gr2_jax.training.progress import Progress

    use_compilation_cache(_CACHE.value)
    with StopSignal() as stop:
      found = measure(
        _RUN.value,
        Progress(),
        stop,
        beams=_BEAMS.value,
        beam_weight=_BEAM_WEIGHT.value,
        users=_USERS.value,
        split=_SPLIT.value,
        sasrec=_SASREC.value,
      )
    Console().print(_table(found))

  return exit_code_of(program, _RUN.value)


def measure(
  directory: str,
  progress: "Progress",
  stop: "StopSignal",
  *,
  beams: int,
  beam_weight: float,
  users: int | None,
  split: str,
  sasrec: bool,
) -> dict[str, Any]:
  """Writes and returns `retrieval.json` of the run, as the flags say; raises UserError where its model cannot be asked."""
  from gr2_jax.evaluation.retrieval import compare_retrieval, ranks_by_row
  from gr2_jax.files import write_json
  from gr2_jax.runs.load import load_catalogue, load_split
  from gr2_jax.runs.run import Run

  run = Run.open(directory)
  _check(run)
  catalogue = load_catalogue(run)
  of_log = load_split(run, catalogue)
  requests = of_log.test if split == "test" else of_log.validation
  if len(requests) < 2:
    raise UserError(f"--run: of the log of {directory} {len(requests)} users have three items or more, and an interval needs two")
  if users is not None and len(requests) > users:
    chosen = np.sort(np.random.default_rng(run.config.seed).choice(len(requests), users, replace=False))
    requests = tuple(requests[i] for i in chosen)
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


def _check(run: "Run") -> None:
  if run.config.midtrain.form != "packed":
    raise UserError(f"--run: {run.directory} is mid-trained on tokens; give a run of midtrain.form packed")
  if run.config.midtrain.packed.whole_log:
    raise UserError(f"--run: the model of {run.directory} has learnt the targets (midtrain.packed.whole_log); give a run without")
  if not run.is_done("midtrain"):
    raise UserError(f"--run: {run.directory} has no finished stage 'midtrain'; run that first")


def _of_mid_training(run: "Run", catalogue: "Catalogue", beams: int, beam_weight: float) -> ScoreRows:
  from gr2_jax.rollout.catalogue_scores import make_dense_scores, make_packed_beam_scores, reorder_beams
  from gr2_jax.runs.packed_midtraining import load_packed_items
  from gr2_jax.training.mesh import make_mesh

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


def _of_graph(run: "Run", catalogue: "Catalogue", split: "Split") -> ScoreRows:
  from gr2_jax.models.transition_graph import TransitionGraph

  graph = TransitionGraph.fit(split.train, catalogue, np.load(run.path("tokenize", "vectors.npy")))
  return lambda histories: iter([(GRAPH, graph.catalogue_scores(histories))])


def _of_sasrec(run: "Run", catalogue: "Catalogue", split: "Split", progress: "Progress", stop: "StopSignal") -> ScoreRows:
  from gr2_jax.evidence.items import unit_vectors
  from gr2_jax.models.sasrec import SasrecConfig, fit_sasrec, sasrec_scores
  from gr2_jax.rollout.catalogue_scores import pad_histories

  config = SasrecConfig()
  vectors = unit_vectors(catalogue, np.load(run.path("tokenize", "vectors.npy")))
  rows = [np.asarray(catalogue.to_rows(history.items)) for history in split.train]
  with progress.task(SASREC, config.epochs, "epochs") as task:

    def report(epoch: int, loss: float) -> None:
      task.update(epoch, {"loss": loss})
      stop.check()

    params = fit_sasrec(rows, vectors, config, run.config.seed, report)

  def score_rows(histories: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    past = pad_histories([row[row >= 0] for row in histories], config.max_history)
    yield SASREC, np.asarray(sasrec_scores(params, past, config))

  return score_rows


def _table(found: dict[str, Any]) -> Any:
  from rich.table import Table

  from gr2_jax.reports.tables import TABLE_STYLE

  table = Table(title=f"full catalogue, history masked: {found['n']:,} {found['split']} users", **TABLE_STYLE)
  table.add_column("ranker", no_wrap=True)
  for label in ("R@5", "R@10", "N@10"):
    table.add_column(label, justify="right")
  for part, key in (("rows", "value"), ("paired", "delta")):
    for name, metrics in found[part].items():
      cells = (f"{of[key]:.4f} [{of['ci95'][0]:.4f}, {of['ci95'][1]:.4f}]" for of in metrics.values())
      table.add_row(name.replace("_vs_", ", "), *cells)
    table.add_section()
  return table


if __name__ == "__main__":
  app.run(main)
