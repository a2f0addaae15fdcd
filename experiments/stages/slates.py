"""Stage `slates`: short lists in an upstream order, for training from targets that the upstream ranker was not fitted on."""

import jax.numpy as jnp
import numpy as np

from gr2_jax.data.jsonl import read_slates, write_slates
from gr2_jax.data.schema import SPLITS, DataError
from gr2_jax.data.slates import cross_fit_examples, slates_from_scores
from gr2_jax.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from gr2_jax.files import write_json
from gr2_jax.models.ctr import CtrConfig, ctr_scores, fit_ctr, history_rows
from gr2_jax.rollout.catalogue_scores import make_beam_scores
from gr2_jax.runs.artifacts import load_catalogue, load_context, load_log, load_policy, load_split, make_decoder
from gr2_jax.teachers.sampling import best_labelled


def run(config, run, progress, stop):
  """Writes `train|validation|test.jsonl.gz` and `report.json`: the target's upstream rank by split, and what was retrieved."""
  catalogue = load_catalogue(run)
  build = {"log": _from_log, "ctr": _from_ctr, "beam": _from_beams}[config.slates.source]
  slates, report = build(run, catalogue, progress, stop)
  for split in SPLITS:
    if not slates[split]:
      raise DataError(f"slates: no {split} slate holds its target; enlarge config.slates.size or train the upstream ranker longer")
  report["source"] = config.slates.source
  report["slates"] = {split: len(slates[split]) for split in SPLITS}
  report["target_upstream_rank"] = {split: _rank_histogram(slates[split]) for split in SPLITS}
  for split in SPLITS:
    write_slates(run.path("slates", f"{split}.jsonl.gz"), slates[split])
  write_json(run.path("slates", "report.json"), report)
  progress.console.print("  " + ", ".join(f"{split} {len(slates[split]):,}" for split in SPLITS) + " slates", highlight=False)


def _rank_histogram(slates):
  ranks = [best_labelled(slate)[0] for slate in slates]
  return np.bincount(ranks, minlength=max(len(s.candidates) for s in slates)).tolist()


def _from_log(run, catalogue, progress, stop):
  """The source's own slates."""
  return {split: read_slates(run.path("data", f"slates_{split}.jsonl.gz"), catalogue) for split in SPLITS}, {}


def _from_ctr(run, catalogue, progress, stop):
  """The legacy ranker's top lists. Training: cross-fitted over users; validation and test: fitted on all training histories."""
  options = run.config.slates
  split = load_split(run, catalogue)
  ctr = CtrConfig(**options.ctr)
  max_history = run.config.data.max_history
  folds = list(cross_fit_examples(split.train, options.folds, run.config.seed, max_history=max_history, per_user=options.per_user))
  with progress.task("slates: upstream ranker", (len(folds) + 1) * ctr.epochs, "epochs") as task:

    def scores_fn(histories, fit):
      def on_progress(epoch, loss):
        task.update(fit * ctr.epochs + epoch, {"loss": loss})
        stop.check()

      params = fit_ctr([np.asarray(catalogue.to_rows(h.items)) for h in histories], len(catalogue), ctr, run.config.seed + fit, on_progress)
      return lambda past: np.asarray(ctr_scores(params, jnp.asarray(_latest(past, ctr.max_history))))

    train, asked = [], 0
    for fold, (fitted, held_out) in enumerate(folds):
      found = slates_from_scores(scores_fn(fitted, fold), held_out, catalogue, size=options.size)
      train += found.slates
      asked += found.asked
    final = scores_fn(split.train, len(folds))
  validation = slates_from_scores(final, split.validation, catalogue, size=options.size)
  test = slates_from_scores(final, split.test, catalogue, size=options.size)
  ranks = retrieval_ranks(final, split.test, catalogue)
  report = {
    "retrieval": {name: retrieval_metrics(values) for name, values in ranks.items()},
    "recall": {"train": len(train) / asked, "validation": validation.recall, "test": test.recall},
  }
  return {"train": train, "validation": validation.slates, "test": test.slates}, report


def _latest(past, width):
  """The last `width` items of histories that are padded at their end."""
  return history_rows([row[row >= 0].tolist() for row in past], width)


def _from_beams(run, catalogue, progress, stop):
  """The mid-trained model's own beams. It was fitted on every training position, so training slates come from the validation positions."""
  options = run.config.slates
  split = load_split(run, catalogue)
  context = load_context(run, catalogue, load_log(run, catalogue))
  decoder = make_decoder(run, context.vocabulary)
  params = load_policy(run, "midtrain", decoder)
  scores = make_beam_scores(decoder, params, context, beams=options.beams, max_history=run.config.midtrain.max_history)
  with progress.task("slates: beams", len(split.validation) + len(split.test), "users") as task:

    def counted(past):
      stop.check()
      found = scores(past)
      task.update(min(task.done + len(past), task.total))
      return found

    held_out = slates_from_scores(counted, split.validation, catalogue, size=options.size)
    test = slates_from_scores(counted, split.test, catalogue, size=options.size)
  cut = max(1, round(len(held_out.slates) * (1 - options.validation_share)))
  order = np.random.default_rng(run.config.seed).permutation(len(held_out.slates))

  def pick(indices):
    return [held_out.slates[i] for i in np.sort(indices)]

  report = {"recall": {"train": held_out.recall, "validation": held_out.recall, "test": test.recall}}
  return {"train": pick(order[:cut]), "validation": pick(order[cut:]), "test": test.slates}, report
