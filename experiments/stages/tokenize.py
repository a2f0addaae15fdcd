"""Stage `tokenize`: item vectors, semantic IDs with their report, and the vocabulary of text pieces and codes."""

import dataclasses
import pathlib
import shutil
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gr2_jax.data.jsonl import read_items
from gr2_jax.data.schema import SPLITS, Catalogue
from gr2_jax.errors import ConfigError
from gr2_jax.evidence.words import fact_sentences
from gr2_jax.files import write_json
from gr2_jax.language.vocabulary import FEWEST_PIECES, Vocabulary, corpus_texts
from gr2_jax.runs.artifacts import artifact_paths
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import RunError
from gr2_jax.runs.stages import Stage
from gr2_jax.runs.starts import read_tokenizer, tokens_elsewhere
from gr2_jax.semantic_ids.embed import item_text, tfidf_svd, vectors_from_npy
from gr2_jax.semantic_ids.export import check_distinct, export_table, prefix_purity
from gr2_jax.semantic_ids.rqvae import RqVaeOptions, save_rqvae
from gr2_jax.semantic_ids.sizes import Inputs, choose_sizes, count_inputs
from gr2_jax.settings import check_settings, setting
from gr2_jax.steps.tokenizer import TokenizerConfig, TokenizerRun, abstract_run, train_tokenizer

SAVE_EVERY = 60  # seconds


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
  """Item vectors, semantic IDs and the vocabulary. Raises ValueError."""

  vectors: str = setting("", "a .npy file of item vectors; empty: TF-IDF and SVD of the items' text")
  code_vectors: str = setting(
    "",
    "a .npy file of item vectors of which the semantic IDs are made instead, such as midtrain/item_vectors.npy of an earlier run; empty: "
    "the same",
  )
  dim: int = setting(256, "width of the vectors that are made of text", low=1)
  rqvae: RqVaeOptions = setting(RqVaeOptions(), "the network that turns an item's vector into codes, its semantic ID")
  training: TokenizerConfig = setting(TokenizerConfig(epochs=500), "training of that network")
  last_level: str = setting(
    "random",
    "the last code of an item: drawn, distinct among items with the same codes before it; drawn for each by itself; or the nearest, as "
    "trained",
    choices=("random", "independent", "nearest"),
  )
  allow_collisions: bool = setting(False, "whether items may share a semantic ID")
  text_pieces: int = setting(
    4096, "pieces of text in the vocabulary, at most; bytes and the characters of names are among them", low=FEWEST_PIECES
  )
  num_candidates: int = setting(32, "candidates that answers can name: those of the longest slate", low=2)

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `vectors.npy`, `rqvae.msgpack`, `sids.npz`, `report.json` and `vocabulary/`; where `config.model.init` is the policy of another
  run these are that run's.
  """
  if (other := tokens_elsewhere(stage.config)) is not None:
    return _take_over(stage, other)
  options: TokenizeOptions = stage.options
  catalogue = stage.catalogue
  embed = vectors_from_npy(options.vectors) if options.vectors else tfidf_svd(options.dim, stage.seed)
  vectors = embed(catalogue)
  np.save(stage.path("vectors.npy"), vectors)
  coded = vectors_from_npy(options.code_vectors)(catalogue) if options.code_vectors else vectors
  inputs = count_item_inputs(options, catalogue)
  if options.last_level == "nearest" and not options.allow_collisions:
    check_distinct(inputs.distinct / inputs.items, inputs, "nearest")  # the same input gets the same codes, however long it is trained
  levels, size = choose_sizes(inputs, options.rqvae.levels, options.rqvae.codebook_size)
  rqvae_config = dataclasses.replace(options.rqvae.network, levels=levels, codebook_size=size)
  trained = _train(stage, coded, dataclasses.replace(options.training, rqvae=rqvae_config))
  save_rqvae(trained.best, stage.path("rqvae.msgpack"))
  table, report = export_table(
    trained.best,
    coded,
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
  vocabulary = train_vocabulary(
    stage.config,
    catalogue,
    text_pieces=options.text_pieces,
    num_levels=table.num_levels,
    codebook_size=table.codebook_size,
    num_candidates=options.num_candidates,
  )
  vocabulary.save(stage.path("vocabulary"))
  if (rows := vocabulary.pieces.rows) and stage.run.main:
    stage.say(
      f"{vocabulary.new_token_start:,} tokens of the published model, {vocabulary.used_size - vocabulary.new_token_start:,} added behind "
      f"them; its token table is resized from {rows:,} to {vocabulary.size:,} rows, new ones near what names them, or the mean"
    )
  stage.say(
    f"{table.num_levels} levels of {table.codebook_size} codes: {report['before']['distinct_share']:.2%} of {len(table):,} items distinct "
    f"by the learned codes alone, {report['after']['distinct_share']:.2%} as exported; R² {report['r2']:.3f}; "
    f"vocabulary {vocabulary.size:,}"
  )
  if table.num_levels > rqvae_config.levels:
    stage.say(
      f"{table.num_levels - rqvae_config.levels} of the levels added: more items share their first codes than a level has values; up to "
      f"{inputs.largest:,} have the same {'vector' if options.code_vectors or options.vectors else 'text'}"
    )


def _take_over(stage: StageContext, other: pathlib.Path) -> None:
  """The tokens and semantic IDs of another run, whose policy reads no others; raises RunError for one about other items."""
  theirs = [item.id for item in read_items(other / "data" / "items.jsonl.gz").items]
  if theirs != [item.id for item in stage.catalogue.items]:
    raise RunError(
      f"--config.model.init: the run {other} is about other items ({len(theirs):,}, here {len(stage.catalogue):,}, or in another order), "
      "so that its semantic IDs mean others; begin at a run on the same catalogue"
    )
  for path in artifact_paths(other / "tokenize"):
    copy = shutil.copytree if path.is_dir() else shutil.copy2
    copy(path, stage.path(path.name))
  stage.say(f"tokens and semantic IDs are those of {other}")


def train_vocabulary(
  config: ConfigDict, catalogue: Catalogue, *, text_pieces: int, num_levels: int, codebook_size: int, num_candidates: int
) -> Vocabulary:
  """The vocabulary of a run, with words for the facts that its prompts show: the tokenizer of the published model that it begins with, or
  text pieces of its own, also of the sentences about facts.
  """
  words, sentences = (config.prompt.facts if config.prompt.fact_form == form else () for form in ("words", "sentences"))
  shape: dict[str, Any] = {
    "num_levels": num_levels,
    "codebook_size": codebook_size,
    "num_candidates": num_candidates,
    "facts": words,
    "fact_buckets": config.evidence.bins if words else 0,
  }
  published = read_tokenizer(config, **shape)
  if published is not None:
    return published
  return Vocabulary.train(corpus_texts(catalogue, fact_sentences(sentences)), text_pieces=text_pieces, **shape)


def count_item_inputs(options: TokenizeOptions, catalogue: Catalogue) -> Inputs:
  """What the items are told apart by: their vectors where they are given, else their texts."""
  if path := options.code_vectors or options.vectors:
    return count_inputs(row.tobytes() for row in vectors_from_npy(path)(catalogue))
  return count_inputs(map(item_text, catalogue.items))


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
  """The vectors must be there."""
  for key, otherwise in (("vectors", "of the items' text"), ("code_vectors", "that are those of the text too")):
    path = config.tokenize[key]
    if path and not pathlib.Path(path).is_file():
      raise ConfigError(
        f"--config.tokenize.{key}: there is no file {path}; name a .npy file, or leave it empty for vectors {otherwise} (a run's stage "
        "midtrain writes item_vectors.npy where its form is packed)"
      )


def foresee(stage: StageContext) -> list[str]:
  """Names for all candidates."""
  longest, named = (
    max((len(slate.candidates) for split in SPLITS for slate in stage.slates(split)), default=0),
    stage.options.num_candidates,
  )
  if longest <= named:
    return []
  return [f"--config.tokenize.num_candidates: a slate has {longest} candidates, but only {named} have names; raise it to {longest}"]


def unused(config: ConfigDict) -> tuple[str, ...]:
  """Of prompts and evidence all but the facts that prompts show, and how many words each gets; of the model all but another's tokens."""
  kind = config.model.init.partition(":")[0]
  if kind == "run":
    return ("tokenize", "prompt", "evidence", "model")
  model = ("model",) if kind == "random" else ("model.preset", "model.dtype", "model.remat", "model.lora")
  pieces = () if kind == "random" else ("tokenize.text_pieces",)
  if not config.prompt.facts:
    return ("prompt", "evidence", *model, *pieces)
  read = ("prompt.facts", "prompt.fact_form", "evidence.bins")
  unread = (key for section in ("prompt", "evidence") for name in config[section] if (key := f"{section}.{name}") not in read)
  return (*unread, *model, *pieces)


STAGE = Stage(
  "tokenize",
  run,
  reads=("seed", "tokenize", "prompt", "evidence", "model"),
  options=TokenizeOptions,
  inputs=("data",),
  files=("tokenize.vectors", "tokenize.code_vectors", "model.init"),
  unused=unused,
  format=2,  # rqvae.msgpack
  check=check,
  foresee=foresee,
)
