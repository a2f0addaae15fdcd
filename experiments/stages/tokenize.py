"""Stage `tokenize`: item vectors, semantic IDs with their report, and the vocabulary of text pieces and codes."""

import time

import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_choice, check_records
from gr2_jax.files import write_json
from gr2_jax.language.vocabulary import Vocabulary, corpus_texts
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.semantic_ids.embed import item_text, tfidf_svd, vectors_from_npy
from gr2_jax.semantic_ids.export import check_distinct, export_table, prefix_purity
from gr2_jax.semantic_ids.rqvae import read_rqvae_config, save_rqvae
from gr2_jax.semantic_ids.sizes import choose_sizes, count_inputs
from gr2_jax.steps.tokenizer import TokenizerConfig, TokenizerRun, abstract_run, train_tokenizer

SAVE_EVERY = 60  # seconds


def run(stage: StageContext) -> None:
  """Writes `vectors.npy`, `rqvae.msgpack`, `sids.npz`, `report.json` and `vocabulary/`."""
  options, catalogue = stage.options, stage.catalogue
  embed = vectors_from_npy(options.vectors) if options.vectors else tfidf_svd(options.dim, stage.seed)
  vectors = embed(catalogue)
  np.save(stage.path("vectors.npy"), vectors)
  inputs = count_inputs((row.tobytes() for row in vectors) if options.vectors else map(item_text, catalogue.items))
  if options.last_level == "nearest" and not options.allow_collisions:
    check_distinct(inputs.distinct / inputs.items, inputs, "nearest")  # the same input gets the same codes, however long it is trained
  rqvae_config = read_rqvae_config(options.rqvae, *choose_sizes(inputs, options.rqvae.levels, options.rqvae.codebook_size))
  trained = _train(stage, vectors, TokenizerConfig(rqvae=rqvae_config, **options.training))
  save_rqvae(trained.best, stage.path("rqvae.msgpack"))
  table, report = export_table(
    trained.best,
    vectors,
    rqvae_config,
    seed=stage.seed,
    inputs=inputs,
    last_level=options.last_level,
    allow_collisions=options.allow_collisions,
  )
  leaves = np.unique([item.leaf for item in catalogue.items], return_inverse=True)[1]
  report["leaf_category_purity"] = prefix_purity(table.codes, leaves)
  report["best_epoch"] = int(trained.best_epoch)
  table.save(stage.path("sids.npz"))
  write_json(stage.path("report.json"), report)
  vocabulary = Vocabulary.train(
    corpus_texts(catalogue),
    text_pieces=options.text_pieces,
    num_levels=table.num_levels,
    codebook_size=table.codebook_size,
    num_candidates=options.num_candidates,
  )
  vocabulary.save(stage.path("vocabulary"))
  stage.say(
    f"{table.num_levels} levels of {table.codebook_size} codes: {report['before']['distinct_share']:.2%} of {len(table):,} items distinct "
    f"by the learned codes alone, {report['after']['distinct_share']:.2%} as exported; R² {report['r2']:.3f}; "
    f"vocabulary {vocabulary.size:,}"
  )
  if table.num_levels > rqvae_config.levels:
    stage.say(
      f"{table.num_levels - rqvae_config.levels} of the levels added: more items share their first codes than a level has values; up to "
      f"{inputs.largest:,} have the same {'vector' if options.vectors else 'text'}"
    )


def _train(stage: StageContext, vectors: np.ndarray, config: TokenizerConfig) -> TokenizerRun:
  """The tokenizer's training; what a stop signal or the last minute saved is where a later session goes on."""
  with (
    stage.checkpoints("tokenize") as checkpoints,
    stage.task("tokenize", config.epochs, "epochs") as task,
    stage.metric_writer("tokenize") as writer,
  ):
    restored = checkpoints.restore_latest(abstract_run(config, vectors.shape[1]))
    start, done = (None, 0) if restored is None else (restored[0], restored[2])
    task.start_from(done)
    writer.resume(done)
    saved = time.monotonic()

    def on_progress(trained: TokenizerRun, figures: dict[str, float]) -> None:
      nonlocal saved
      epoch = int(figures.pop("epoch"))
      figures.pop("epochs")
      task.update(epoch, {name: figures[name] for name in ("loss", "prefix_collisions", "r2")})
      writer.write(epoch, figures)
      if stage.run.main and (stage.stop.requested or time.monotonic() - saved > SAVE_EVERY):
        checkpoints.save(epoch, trained, {})
        saved = time.monotonic()
      stage.stop.check()

    return train_tokenizer(vectors, config, stage.seed, on_progress, start)


def check(config: ConfigDict) -> None:
  """Settings of the tokenizer and the way in which codes are made distinct."""
  check_choice(config, "tokenize.last_level", ("random", "independent", "nearest"))
  check_records(
    {
      "tokenize.rqvae": lambda: read_rqvae_config(config.tokenize.rqvae),
      "tokenize.training": lambda: TokenizerConfig(**config.tokenize.training),
    }
  )


STAGE = Stage(
  "tokenize",
  run,
  reads=("seed", "tokenize"),
  inputs=("data",),
  files=("tokenize.vectors",),
  format=2,  # rqvae.msgpack
  check=check,
)
