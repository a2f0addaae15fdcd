"""Stage `midtrain`: a language model of semantic IDs and text, and how well it retrieves from the whole catalogue."""

import jax
import numpy as np

from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from gr2_jax.files import write_json
from gr2_jax.language.midtrain_tasks import MidtrainCorpus, Mixture
from gr2_jax.rollout.catalogue_scores import make_beam_scores
from gr2_jax.runs.artifacts import load_catalogue, load_context, load_log, load_split, make_decoder, run_mesh, stage_checkpoints, stage_key
from gr2_jax.runs.training import train_lm


def run(config, run, progress, stop):
  """Trains new token rows, then everything; writes checkpoints and `retrieval.json` (beam search over the trie, test requests)."""
  options = config.midtrain
  catalogue = load_catalogue(run)
  split = load_split(run, catalogue)
  context = load_context(run, catalogue, load_log(run, catalogue))
  vocabulary = context.vocabulary
  decoder, mesh = make_decoder(run, vocabulary), run_mesh(run)
  corpus = MidtrainCorpus(split.train, context, Mixture(**options.mixture), config.seed, options.max_history, epochs=options.corpus_epochs)

  def batches(seed):
    return make_pipeline(
      corpus,
      seed=seed,
      batch_size=options.batch_size,
      map_fn=lambda example, rng: {"tokens": example.tokens, "parts": example.loss_weights > 0},
      pack_length=options.row_length,
      cut=True,
      pad_id=vocabulary.pad_id,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  common = {
    "key": stage_key(run, "midtrain"),
    "part_names": ("token",),
    "part_weights": (1.0,),
    "progress": progress,
    "stop": stop,
  }
  init = None
  if options.warmup_rows.steps:
    train_lm(
      run,
      "midtrain",
      decoder,
      batches(config.seed + 1),
      options.warmup_rows,
      mesh,
      init=None,
      new_rows_from=vocabulary.new_token_start,
      name="warmup_rows",
      **common,
    )
    init = stage_checkpoints(run, "midtrain", "warmup_rows")
  params = train_lm(run, "midtrain", decoder, batches(config.seed), options, mesh, init=init, **common)
  _evaluate(run, decoder, params, context, split.test, progress, stop)


def _evaluate(run, decoder, params, context, requests, progress, stop):
  options = run.config.midtrain
  if options.eval_users and len(requests) > options.eval_users:
    chosen = np.sort(np.random.default_rng(run.config.seed).choice(len(requests), options.eval_users, replace=False))
    requests = [requests[i] for i in chosen]
  scores = make_beam_scores(decoder, params, context, beams=options.beams, max_history=options.max_history)
  with progress.task("midtrain: retrieval", len(requests), "users") as task:
    done = 0

    def on_progress(count):
      nonlocal done
      done += count
      task.update(done)
      stop.check()

    ranks = retrieval_ranks(scores, requests, context.catalogue, on_progress=on_progress)
  report = {"beams": options.beams, "requests": len(requests)}
  report |= {name: retrieval_metrics(values) for name, values in ranks.items()}
  segments = sorted({r.segment for r in requests if r.segment})
  for segment in segments:
    inside = np.array([r.segment == segment for r in requests])
    report |= {f"{name}, {segment}": retrieval_metrics(values[inside]) for name, values in ranks.items()}
  write_json(run.path("midtrain", "retrieval.json"), report)
  masked = report["masked"]
  progress.console.print(
    f"  full catalogue, history masked: R@5 {masked['recall@5']:.4f}  R@10 {masked['recall@10']:.4f}  "
    f"N@5 {masked['ndcg@5']:.4f}  N@10 {masked['ndcg@10']:.4f}  ({len(requests):,} users)",
    highlight=False,
  )
