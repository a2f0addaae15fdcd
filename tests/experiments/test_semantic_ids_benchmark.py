"""The semantic-ID suite: alone where faiss is missing, and the same measure of what comes back for both."""

import dataclasses

import numpy as np
import pytest

from experiments.benchmarks import semantic_ids
from gr2_jax.semantic_ids.rqvae import RqVaeConfig


@pytest.fixture
def small(monkeypatch):
  rqvae = RqVaeConfig(levels=2, codebook_size=16, latent=4, hidden=(8,), kmeans_samples=300)
  catalogue = semantic_ids._Catalogue(items=400, width=6, trained=300, epochs=4, report_every=2)
  for name, value in {"_RQVAE": rqvae, "_BITS": 4, "_CATALOGUES": (catalogue,), "_TRIES": (200,)}.items():
    monkeypatch.setattr(semantic_ids, name, value)
  return catalogue


@pytest.mark.slow
def test_without_faiss_it_measures_ours_and_says_so(small, monkeypatch):
  monkeypatch.setattr(semantic_ids, "_has_faiss", lambda: False)
  _, note, ours, trie = semantic_ids.run()
  assert "measured alone" in note["note"]
  assert ours["epoch_items_per_s"] > 0 and ours["r2"] < 1 and ours["distinct_share"] <= ours["exported_distinct_share"] <= 1
  assert trie["dense_mb"] >= trie["compressed_mb"] >= 0 and 100 < trie["states"] <= 1 + 16 + 256


def test_faiss_gets_back_what_its_codebooks_hold(small, monkeypatch):
  pytest.importorskip("faiss")
  monkeypatch.setattr(semantic_ids, "_RQVAE", dataclasses.replace(semantic_ids._RQVAE, codebook_size=256))
  monkeypatch.setattr(semantic_ids, "_BITS", 8)
  # As many clusters as codes, without noise: one level holds them all, whatever the beam.
  centres = np.random.default_rng(1).normal(size=(256, small.width)).astype(np.float32)
  vectors = np.tile(centres, (2, 1))
  for beam in (1, 5):
    line = semantic_ids._measure_faiss(vectors, small._replace(trained=len(vectors)), beam)
    assert line["r2"] > 0.99 and line["distinct_share"] <= 0.5
