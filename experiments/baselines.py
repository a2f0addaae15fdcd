"""The rankers of no language model that `evaluation.baselines` may name: one function each, and the table that lists them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from gr2_jax.data.schema import Slate
from gr2_jax.data.slates import slate_labels
from gr2_jax.evaluation.baselines import rank_by_scores
from gr2_jax.evaluation.metrics import compute_metrics
from gr2_jax.models.listwise import FittedRanker, Kind, fit_listwise
from gr2_jax.models.transition_graph import TransitionGraph
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.fact_tables import FactTables


def _score_by_listwise(kind: Kind, stage: StageContext, slates: Mapping[str, Sequence[Slate]]) -> np.ndarray:
  """Fitted on the labels of all training slates; N@10 of the validation slates chooses the epoch, as of LambdaMART the trees."""
  tables, config = FactTables(stage.run), stage.options.listwise
  facts = {split: tables.read(split)[: len(of)] for split, of in slates.items()}
  labels = {split: slate_labels(of) for split, of in slates.items()}
  real = {split: of >= 0 for split, of in labels.items()}
  with stage.task(f"evaluation: {kind}", config.epochs, "epochs") as task:

    def on_epoch(done: int, loss: float) -> None:
      task.update(done, {"loss": loss})
      stage.stop.check()

    def quality(ranker: FittedRanker) -> float:
      rankings = rank_by_scores(ranker.scores(facts["validation"], real["validation"]), labels["validation"], kind)
      return float(compute_metrics(rankings, labels["validation"])["ndcg@10"].mean())

    ranker = fit_listwise(
      kind,
      config,
      facts["train"],
      labels["train"],
      np.array([slate.weight for slate in slates["train"]], np.float32),
      tables.codes.edges,
      quality,
      longest=tables.longest,
      seed=stage.seed,
      key="evaluation.listwise",
      on_epoch=on_epoch,
    )
  stage.say(f"{kind}: epoch {ranker.epoch} is the best of the validation slates")
  return ranker.scores(facts["test"], real["test"])


def _score_by_graph(stage: StageContext, slates: Mapping[str, Sequence[Slate]]) -> np.ndarray:
  """Counted in the run's log, strictly before each request."""
  graph = TransitionGraph.fit(stage.log, stage.catalogue, np.load(stage.run.path("tokenize", "vectors.npy")))
  return graph.slate_scores(slates["test"], stage.catalogue)


# name -> scores [n, K] of the test slates, from (the stage, the slates of all splits)
BASELINES: Mapping[str, Callable[[StageContext, Mapping[str, Sequence[Slate]]], np.ndarray]] = {
  "prm": partial(_score_by_listwise, "prm"),
  "listwise_mlp": partial(_score_by_listwise, "listwise_mlp"),
  "transition_graph": _score_by_graph,
}
