"""Stage `tokenize`: item vectors, semantic IDs with their report, and the vocabulary of text pieces and codes."""

import time

import numpy as np

from gr2_jax.files import write_json
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts
from gr2_jax.runs.artifacts import load_catalogue, metric_writer, stage_checkpoints
from gr2_jax.semantic_ids.embed import tfidf_svd, vectors_from_npy
from gr2_jax.semantic_ids.export import export_table, prefix_purity
from gr2_jax.semantic_ids.rqvae import RqVaeConfig, save_rqvae
from gr2_jax.steps.tokenizer import TokenizerConfig, abstract_run, train_tokenizer

SAVE_EVERY = 60  # seconds


def run(config, run, progress, stop):
  """Writes `vectors.npy`, `rqvae.msgpack`, `sids.npz`, `report.json` and `vocabulary/`."""
  options = config.tokenize
  catalogue = load_catalogue(run)
  embed = vectors_from_npy(options.vectors) if options.vectors else tfidf_svd(options.dim, config.seed)
  vectors = embed(catalogue)
  np.save(run.path("tokenize", "vectors.npy"), vectors)
  rqvae_config = RqVaeConfig(**options.rqvae)
  trained = _train(run, vectors, TokenizerConfig(rqvae=rqvae_config, **options.training), progress, stop)
  save_rqvae(trained.best, run.path("tokenize", "rqvae.msgpack"))
  table, report = export_table(
    trained.best,
    vectors,
    rqvae_config,
    seed=config.seed,
    last_level=options.last_level,
    allow_collisions=options.allow_collisions,
  )
  leaves = [item.leaf for item in catalogue.items]
  report["leaf_category_purity"] = prefix_purity(table.codes, np.unique(leaves, return_inverse=True)[1])
  report["best_epoch"] = int(trained.best_epoch)
  table.save(run.path("tokenize", "sids.npz"))
  write_json(run.path("tokenize", "report.json"), report)
  vocabulary = Vocabulary.train(
    corpus_texts(catalogue),
    text_pieces=options.text_pieces,
    num_levels=table.num_levels,
    codebook_size=table.codebook_size,
    num_candidates=options.num_candidates,
  )
  vocabulary.save(run.path("tokenize", "vocabulary"))
  progress.console.print(
    f"  {report['before']['distinct_share']:.2%} of {len(table):,} items distinct as trained, "
    f"{report['after']['distinct_share']:.2%} exported; R² {report['r2']:.3f}; vocabulary {vocabulary.size:,}",
    highlight=False,
  )


def _train(run, vectors, config, progress, stop):
  """The tokenizer's training; what a stop signal or the last minute saved is where a later session goes on."""
  with (
    stage_checkpoints(run, "tokenize") as checkpoints,
    progress.task("tokenize", config.epochs, "epochs") as task,
    metric_writer(run, "tokenize") as writer,
  ):
    restored = checkpoints.restore_latest(abstract_run(config, vectors.shape[1]))
    start, done = (None, 0) if restored is None else (restored[0], restored[2])
    task.start_from(done)
    writer.resume(done)
    saved = time.monotonic()

    def on_progress(trained, figures):
      nonlocal saved
      epoch = int(figures.pop("epoch"))
      figures.pop("epochs")
      task.update(epoch, {name: figures[name] for name in ("loss", "prefix_collisions", "r2")})
      writer.write(epoch, figures)
      if run.main and (stop.requested or time.monotonic() - saved > SAVE_EVERY):
        checkpoints.save(epoch, trained, {})
        saved = time.monotonic()
      stop.check()

    return train_tokenizer(vectors, config, run.config.seed, on_progress, start)
