"""Items that came after training: the codes of their text, IDs of their own, and named errors where text gives none."""

import dataclasses
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from gr2_jax.data.schema import DataError, Item
from gr2_jax.runs.run import Run, RunError
from gr2_jax.semantic_ids.embed import fit_text_encoder
from gr2_jax.semantic_ids.export import assign_codes
from gr2_jax.semantic_ids.rqvae import RqVaeConfig, load_rqvae
from gr2_jax.serving.cold_start import ColdStart
from gr2_jax.serving.request import RequestError
from gr2_jax.serving.reranker import Options, Reranker


@pytest.fixture(scope="module")
def reranker(tiny_run):
  return Reranker.load(tiny_run, options=Options(modes=("score",), mode="score", batch_size=1))


@pytest.fixture(scope="module")
def saved(tiny_run):
  return Run.open(tiny_run)


def test_the_text_decides_the_first_codes_and_no_item_has_the_id(reranker, saved):
  context = reranker.context
  config = saved.config.tokenize
  rqvae_config = RqVaeConfig(**config.rqvae.to_dict() | {"hidden": tuple(config.rqvae.hidden)})
  _, vectors = fit_text_encoder(context.catalogue, config.dim, saved.config.seed)
  trained, _ = assign_codes(load_rqvae(saved.path("tokenize", "rqvae.msgpack")), vectors, rqvae_config)
  np.testing.assert_array_equal(trained[:, :-1], context.codes[:, :-1])
  twins = [dataclasses.replace(item, id=f"new-{item.id}") for item in context.catalogue.items[:40]]
  extended = ColdStart(saved, context).extend(twins)
  assert len(extended.catalogue) == len(context.catalogue) + 40 and extended.catalogue.items[-40:] == tuple(twins)
  codes = extended.codes[-40:]
  np.testing.assert_array_equal(codes[:, :-1], context.codes[:40, :-1])
  ids = {tuple(row) for row in extended.codes.tolist()}
  assert len(ids) == len({tuple(row) for row in context.codes.tolist()}) + 40
  alone = ColdStart(saved, context).extend(twins[:1])
  np.testing.assert_array_equal(alone.codes[-1], codes[0])


def test_a_slate_with_new_items_is_ranked(reranker):
  known = [item.id for item in reranker.context.catalogue.items[:5]]
  text = reranker.context.catalogue.items[7]
  new = Item("new", text.title, text.brand, text.categories)
  ranking = reranker.rank((known[0], new), (*known[1:], Item("newer", text.title), Item(known[0], "text of its own, not used")))
  assert set(ranking.order) == {*known, "newer"} and set(ranking.assigned) == {"new", "newer"} and not ranking.fallback
  with pytest.raises(RequestError, match="'new'") as error:
    reranker.rank((), (known[0], Item("new", "zzzqqq")))
  assert error.value.kind == "unknown_item"


def with_config(saved, **tokenize):
  config = ConfigDict(saved.config.to_dict())
  config.tokenize.update(tokenize)
  return dataclasses.replace(saved, config=config)


def test_where_text_gives_no_codes_the_error_says_why(reranker, saved, tmp_path):
  item = [Item("new", reranker.context.catalogue.items[0].title)]
  with pytest.raises(DataError, match="vectors from a file"):
    ColdStart(with_config(saved, vectors="vectors.npy"), reranker.context).extend(item)
  with pytest.raises(DataError, match=r"rqvae\.msgpack"):
    ColdStart(dataclasses.replace(saved, directory=tmp_path), reranker.context).extend(item)
  with pytest.raises(DataError, match=r"versions\.json"):
    ColdStart(with_config(saved, dim=saved.config.tokenize.dim // 2), reranker.context).extend(item)


def test_a_run_that_is_not_there_or_not_finished_is_named(tiny_run, tmp_path):
  with pytest.raises(RunError, match=r"config\.json"):
    Reranker.load(tmp_path)
  (tmp_path / "config.json").write_text((tiny_run / "config.json").read_text())
  with pytest.raises(RunError, match=r"stage: .*'rl'"):
    Reranker.load(tmp_path)
  shutil.copytree(tiny_run / "rl", tmp_path / "rl")
  with pytest.raises(RunError, match="data, tokenize"):
    Reranker.load(tmp_path)
