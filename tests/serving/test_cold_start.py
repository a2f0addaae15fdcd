"""Items that came after training: the codes of their text, IDs of their own, and named errors where text gives none."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError, Item
from gr2_jax.runs.load import load_policy, open_context
from gr2_jax.runs.policies import find_policy
from gr2_jax.runs.run import Run, RunError
from gr2_jax.semantic_ids.embed import fit_text_encoder
from gr2_jax.semantic_ids.export import assign_codes
from gr2_jax.semantic_ids.rqvae import load_rqvae, read_rqvae_config
from gr2_jax.serving.cold_start import ColdStart
from gr2_jax.serving.reranker import Options, Reranker
from gr2_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def reranker(tiny_run):
  run = Run.open(tiny_run)
  policy = load_policy(run, find_policy(run, "rl"), open_context(run), make_mesh(devices=jax.devices()[:1]))
  return Reranker.of_policy(policy, options=Options(modes=("score",), batch_size=1), force=True)  # it compiles the fastest


@pytest.fixture(scope="module")
def saved(tiny_run):
  return Run.open(tiny_run)


def test_an_item_whose_text_says_nothing_is_placed_by_what_is_known_of_it(reranker, saved):
  context = reranker.policy.context
  items = context.catalogue.items
  like = items[7]
  rows = {
    "leaf": [row for row, item in enumerate(items) if item.categories == like.categories],
    "broad": [row for row, item in enumerate(items) if item.categories[:1] == like.categories[:1]],
    "brand": [row for row, item in enumerate(items) if item.brand == like.brand],
    "all": list(range(len(items))),
  }
  new = {
    "leaf": Item("leaf", "", "no such brand", like.categories),
    "broad": Item("broad", "", like.brand, (like.categories[0], "no such leaf")),
    "brand": Item("brand", "", like.brand, ("no such category",)),
    "all": Item("all", "💅🏽"),
  }
  # A run that took its vectors from a file reads no text at all.
  extended, guessed = ColdStart(with_config(saved, vectors="vectors.npy"), context).extend(list(new.values()))
  assert guessed == {"leaf": "category", "broad": "category", "brand": "brand", "all": "centre"}
  vectors = np.load(saved.path("tokenize", "vectors.npy"))
  for name, codes in zip(new, extended.codes[-4:], strict=True):
    middle = max(rows[name], key=lambda row: vectors[row] @ vectors[rows[name]].sum(axis=0))
    assert codes[:-1].tolist() == context.codes[middle, :-1].tolist(), name
  assert len({tuple(row) for row in extended.codes.tolist()}) == len({tuple(row) for row in context.codes.tolist()}) + 4

  known = [item.id for item in items[:3]]
  ranking = reranker.rank((known[0], Item("smile", "😀")), (*known, Item("flower", "🌹", "🌹", ("✨",)), Item("word", like.title)))
  assert dict(ranking.guessed) == {"smile": "centre", "flower": "centre"} and not ranking.fallback
  assert set(ranking.order) == {*known, "flower", "word"} and set(ranking.assigned) == {"smile", "flower", "word"}


def test_the_text_decides_the_first_codes_and_no_item_has_the_id(reranker, saved):
  context = reranker.policy.context
  config = saved.config.tokenize
  rqvae = load_rqvae(saved.path("tokenize", "rqvae.msgpack"))
  _, vectors = fit_text_encoder(context.catalogue, config.dim, saved.config.seed)
  trained, _ = assign_codes(rqvae, vectors, read_rqvae_config(config.rqvae, *rqvae.codebooks.counts.shape))
  np.testing.assert_array_equal(trained[:, :-1], context.codes[:, :-1])
  twins = [dataclasses.replace(item, id=f"new-{item.id}") for item in context.catalogue.items[:40]]
  extended, guessed = ColdStart(saved, context).extend(twins)
  assert not guessed
  assert len(extended.catalogue) == len(context.catalogue) + 40 and extended.catalogue.items[-40:] == tuple(twins)
  codes = extended.codes[-40:]
  np.testing.assert_array_equal(codes[:, :-1], context.codes[:40, :-1])
  ids = {tuple(row) for row in extended.codes.tolist()}
  assert len(ids) == len({tuple(row) for row in context.codes.tolist()}) + 40
  alone, _ = ColdStart(saved, context).extend(twins[:1])
  np.testing.assert_array_equal(alone.codes[-1], codes[0])


def test_a_slate_with_new_items_is_ranked(reranker):
  known = [item.id for item in reranker.policy.context.catalogue.items[:5]]
  text = reranker.policy.context.catalogue.items[7]
  new = Item("new", text.title, text.brand, text.categories)
  ranking = reranker.rank((known[0], new), (*known[1:], Item("newer", text.title), Item(known[0], "text of its own, not used")))
  assert set(ranking.order) == {*known, "newer"} and set(ranking.assigned) == {"new", "newer"} and not ranking.fallback


def with_config(saved, **tokenize):
  config = ConfigDict(saved.config.to_dict())
  config.tokenize.update(tokenize)
  return dataclasses.replace(saved, config=config)


def test_where_text_gives_no_codes_the_error_says_why(reranker, saved, tmp_path):
  item = [Item("new", reranker.policy.context.catalogue.items[0].title)]
  with pytest.raises(DataError, match=r"rqvae\.msgpack"):
    ColdStart(dataclasses.replace(saved, directory=tmp_path), reranker.policy.context).extend(item)
  with pytest.raises(DataError, match=r"versions\.json"):
    ColdStart(with_config(saved, dim=saved.config.tokenize.dim // 2), reranker.policy.context).extend(item)


def test_a_run_that_is_not_there_or_not_finished_is_named(tiny_run, tmp_path):
  with pytest.raises(RunError, match=r"config\.json"):
    Reranker.load(tmp_path)
  (tmp_path / "config.json").write_text((tiny_run / "config.json").read_text())
  with pytest.raises(RunError, match=r"stage: .*'rl'"):
    Reranker.load(tmp_path)
  shutil.copytree(tiny_run / "rl", tmp_path / "rl")
  with pytest.raises(RunError, match="data, tokenize"):
    Reranker.load(tmp_path)
