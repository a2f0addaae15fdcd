"""The tokenizer's training, stopped between two compiled calls, ends with the codes of an uninterrupted one; every catalogue gets IDs."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_runs import tiny_config

from experiments.stages import tokenize
from experiments.stages.tokenize import _train
from gr2_jax.data.schema import Catalogue, DataError, Item
from gr2_jax.language.vocabulary import Vocabulary
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.run import Run
from gr2_jax.semantic_ids.rqvae import RqVaeConfig
from gr2_jax.semantic_ids.table import SemanticIDTable
from gr2_jax.settings import read_record
from gr2_jax.steps.tokenizer import TokenizerConfig
from gr2_jax.training.interrupts import Interrupted, StopSignal
from gr2_jax.training.progress import Progress

CONFIG = TokenizerConfig(
  rqvae=RqVaeConfig(levels=2, codebook_size=4, latent=4, hidden=(8,)), epochs=30, warmup_epochs=5, batch_size=16, report_every=10
)


class StopAtOnce(StopSignal):
  """A signal that has come before the first report."""

  def __enter__(self):
    self.signum = 15
    return self


def train(folder, stop):
  run = Run(folder, ConfigDict({"seed": 0, "wandb_project": ""}))
  vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
  with stop as signal:
    return _train(StageContext(run, "tokenize", Progress(), signal), vectors, CONFIG)


def test_stopped_training_goes_on(tmp_path):
  whole = train(tmp_path / "whole", StopSignal())
  with pytest.raises(Interrupted):
    train(tmp_path / "cut", StopAtOnce())
  assert (tmp_path / "cut" / "tokenize" / "checkpoints" / "10").is_dir()
  resumed = train(tmp_path / "cut", StopSignal())
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def untitled(alone, groups):
  """Items without titles: `alone` have brand and category to themselves, and so many as each of `groups` says share theirs."""
  sizes = [1] * alone + list(groups)
  makers = [(f"{a}{b}ra", f"{c}{a}lo") for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst" for _ in range(20)]
  owners = [(f"{brand} {number}", ("care", f"{leaf} {number % 97}")) for number, (brand, leaf) in enumerate(makers[: len(sizes)])]
  items = [(brand, path) for size, (brand, path) in zip(sizes, owners, strict=True) for _ in range(size)]
  return Catalogue(tuple(Item(f"i{number}", "", brand, path) for number, (brand, path) in enumerate(items)))


def run_stage(folder, catalogue, **changes):
  """The stage's table, report and vocabulary for a catalogue, by the quickstart's config."""
  config = tiny_config(**{"tokenize__text_pieces": 400} | {f"tokenize__{key}": value for key, value in changes.items()})
  (folder / "tokenize").mkdir(parents=True)
  with StopSignal() as stop:
    options = read_record(tokenize.TokenizeOptions, config, "tokenize")
    stage = StageContext(Run(folder, config), "tokenize", Progress(), stop, options)
    vars(stage)["catalogue"] = catalogue
    tokenize.run(stage)
  report = json.loads((folder / "tokenize" / "report.json").read_text())
  return SemanticIDTable.load(folder / "tokenize" / "sids.npz"), report, Vocabulary.load(folder / "tokenize" / "vocabulary")


def check_ids(table, report, vocabulary, items, largest):
  assert table.uniqueness() == {"distinct_share": 1.0, "own_share": 1.0} and len(table) == items
  assert table.codebook_size**2 > largest > table.codebook_size and table.num_levels == 4  # three by the rule, and one for the largest
  assert report["after"]["distinct_share"] == 1 > report["before"]["distinct_share"]
  assert report["before"]["distinct_share"] <= report["distinct_inputs"] / items and report["largest_input"] == largest
  assert (vocabulary.num_levels, vocabulary.codebook_size) == (table.num_levels, table.codebook_size)


def test_a_catalogue_of_items_with_the_same_text_gets_distinct_ids(tmp_path):
  sizes = (270, *(2 + number % 5 for number in range(60)))
  catalogue = untitled(40, sizes)
  check_ids(*run_stage(tmp_path, catalogue, training__epochs=2), 40 + sum(sizes), 270)
  with pytest.raises(DataError, match=r"last_level=nearest.* up to 270 items have the same"):
    run_stage(tmp_path / "nearest", catalogue, last_level="nearest")
  assert not (tmp_path / "nearest" / "tokenize" / "checkpoints").exists()  # found before the training


@pytest.mark.slow
def test_sizes_that_are_set_stay_where_collisions_are_allowed(tmp_path):
  changes = {"rqvae__levels": 2, "rqvae__codebook_size": 8, "allow_collisions": True, "training__epochs": 1}
  table, report, vocabulary = run_stage(tmp_path, untitled(40, (20, 7, 5)), **changes)
  assert (table.num_levels, table.codebook_size) == (vocabulary.num_levels, vocabulary.codebook_size) == (2, 8)
  assert report["after"]["own_share"] < 1 and report["largest_input"] == 20


def test_codes_of_other_vectors_beside_those_of_the_text(tmp_path):
  """Two clusters that no text tells: the first code does, and the text's vectors stay what models read."""
  catalogue, random = untitled(60, ()), np.random.default_rng(0)
  cluster = random.integers(2, size=60)
  np.save(tmp_path / "learnt.npy", np.array([[1, 0, 0, 0], [0, 1, 0, 0]])[cluster] + 0.05 * random.normal(size=(60, 4)))
  changes = {"training__epochs": 20, "dim": 16}
  table, _, _ = run_stage(tmp_path / "learnt", catalogue, code_vectors=str(tmp_path / "learnt.npy"), **changes)
  plain, _, _ = run_stage(tmp_path / "plain", catalogue, **changes)
  of_cluster = [set(table.codes[cluster == side, 0].tolist()) for side in (0, 1)]
  assert of_cluster[0].isdisjoint(of_cluster[1]) and not np.array_equal(table.codes, plain.codes)
  vectors = [np.load(tmp_path / name / "tokenize" / "vectors.npy") for name in ("learnt", "plain")]
  np.testing.assert_array_equal(*vectors)
  np.save(tmp_path / "short.npy", np.ones((59, 4)))
  with pytest.raises(DataError, match=r"short\.npy: 59 rows for 60 items"):
    run_stage(tmp_path / "short", catalogue, code_vectors=str(tmp_path / "short.npy"), **changes)


@pytest.mark.slow
def test_a_whole_catalogue_without_titles(tmp_path):
  """18,357 items, 15,416 of which share brand and categories with another one."""
  sizes = [max(2, 460 // rank) for rank in range(1, 6600)]
  sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), 15_416)) + 1]
  sizes[1] -= sum(sizes) - 15_416
  check_ids(*run_stage(tmp_path, untitled(2941, sizes), text_pieces=512, training__epochs=20), 18_357, 460)
