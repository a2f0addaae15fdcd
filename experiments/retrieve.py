"""How a run's mid-trained model of packed items retrieves from the whole catalogue, beside rankers that are made for this alone.

    python -m experiments.retrieve --run=RUN

Test requests, items of the history masked. Rows: the dense head; beams of the semantic-ID decoder; the same beams ordered by the dense
head, and by it and their own log-probability; the transition graph with text, which needs no training. Writes RUN/retrieval.json: R@5, R@10
and N@10 with 95 % intervals over users, and paired differences.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags

from experiments.compilation_cache import define_compilation_cache, use_compilation_cache
from experiments.exit_code import exit_code_of
from gr2_jax.errors import UserError

_RUN = flags.DEFINE_string("run", None, "run directory with a finished mid-training on packed items")
_BEAMS = flags.DEFINE_integer("beams", 200, "of the search over semantic IDs", lower_bound=1)
_BEAM_WEIGHT = flags.DEFINE_float("beam_weight", 0.5, "of a beam's log-probability beside the dense head's", lower_bound=0)
_USERS = flags.DEFINE_integer("users", None, "whose requests are asked, drawn by the run's seed (all)", lower_bound=2)
_SPLIT = flags.DEFINE_enum("split", "test", ("validation", "test"), "whose requests are asked; settings are chosen on those of validation")
_CACHE = define_compilation_cache()

DENSE, BEAMS, REORDERED, BOTH, GRAPH = "dense head", "beams", "beams by the dense head", "beams by both", "transition graph"
_PAIRS = ((DENSE, GRAPH), (REORDERED, BEAMS), (BOTH, REORDERED), (DENSE, REORDERED))


def main(argv: Sequence[str]) -> int:
  """Measures the run that the flag names."""

  def program() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; write --run=RUN")
    if not _RUN.value:
      raise UserError("--run is missing; for example --run=runs/beauty")
    # Here, since --help should not wait for JAX.
    from rich.console import Console

    from gr2_jax.training.interrupts import StopSignal
    from gr2_jax.training.progress import Progress

    use_compilation_cache(_CACHE.value)
    with StopSignal() as stop:
      found = measure(_RUN.value, Progress(), stop)
    Console().print(_table(found))

  return exit_code_of(program, _RUN.value)


def measure(directory: str, progress: Any, stop: Any) -> dict[str, Any]:
  """Writes and returns `retrieval.json` of the run; raises UserError where its model cannot be asked, or has learnt the targets."""
  import numpy as np

  from gr2_jax.evaluation.retrieval import compare_retrieval, ranks_by_row
  from gr2_jax.files import write_json
  from gr2_jax.runs.load import load_catalogue, load_split
  from gr2_jax.runs.run import Run

  run = Run.open(directory)
  _check(run, directory)
  catalogue = load_catalogue(run)
  split = load_split(run, catalogue)
  requests = split.test if _SPLIT.value == "test" else split.validation
  if len(requests) < 2:
    raise UserError(f"--run: {directory} has {len(requests)} users of three items or more, and an interval needs two")
  if _USERS.value is not None and len(requests) > _USERS.value:
    chosen = np.sort(np.random.default_rng(run.config.seed).choice(len(requests), _USERS.value, replace=False))
    requests = tuple(requests[i] for i in chosen)
  score_rows = _make_rows(run, catalogue, split)
  with progress.task("retrieve", len(requests), "users") as task:

    def report(count: int) -> None:
      stop.check()
      task.update(task.done + count)

    ranks = ranks_by_row(score_rows, requests, catalogue, on_progress=report)
  found = {"split": _SPLIT.value, "beams": _BEAMS.value, "beam_weight": _BEAM_WEIGHT.value}
  found |= compare_retrieval(ranks, _PAIRS, seed=run.config.seed)
  write_json(run.directory / "retrieval.json", found)
  return found


def _check(run: Any, directory: str) -> None:
  if run.config.midtrain.form != "packed":
    raise UserError(
      f"--run: {directory} is mid-trained on tokens, whose retrieval its stage midtrain measures; give one of midtrain.form packed"
    )
  if run.config.midtrain.packed.whole_log:
    raise UserError(f"--run: {directory} has midtrain.packed.whole_log, so its model has learnt the targets; give one without")
  if not run.is_done("midtrain"):
    raise UserError(f"--run: {directory} has no finished stage 'midtrain'; run that first")


def _make_rows(run: Any, catalogue: Any, split: Any) -> Callable[[Any], Iterator[tuple[str, Any]]]:
  """`score_rows(histories)`, see `ranks_by_row`."""
  import numpy as np

  from gr2_jax.models.transition_graph import TransitionGraph
  from gr2_jax.rollout.catalogue_scores import make_dense_scores, make_packed_beam_scores, reorder_beams
  from gr2_jax.runs.packed_midtraining import load_packed_items
  from gr2_jax.training.mesh import make_mesh

  model, params, table = load_packed_items(run, catalogue, make_mesh(**run.config.mesh))
  max_history = run.config.midtrain.max_history
  dense_scores = make_dense_scores(model, params, table, max_history=max_history)
  beam_scores = make_packed_beam_scores(model, params, table, beams=_BEAMS.value, max_history=max_history)
  graph = TransitionGraph.fit(split.train, catalogue, np.load(run.path("tokenize", "vectors.npy")))

  def score_rows(histories: Any) -> Iterator[tuple[str, Any]]:
    dense, beams = dense_scores(histories), beam_scores(histories)
    yield DENSE, dense
    yield BEAMS, beams
    yield REORDERED, reorder_beams(beams, dense)
    yield BOTH, reorder_beams(beams, dense, _BEAM_WEIGHT.value)
    yield GRAPH, graph.catalogue_scores(histories)

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
