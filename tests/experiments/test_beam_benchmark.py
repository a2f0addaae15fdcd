"""The beam suite: parity before timing, alone where the peers are missing, and our parameters in transformers' Qwen3."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.benchmarks import beam
from experiments.benchmarks.peers import to_hf_qwen3
from gr2_jax.models.config import preset
from gr2_jax.models.transformer import Decoder, init_params


@pytest.fixture
def small(monkeypatch):
  sizes = {"_ITEMS": 60, "_PROMPT": 5, "_SIZES": ((2, 3),), "_LARGE": 1_000}
  for name, value in (sizes | {"preset": lambda _, vocab_size: preset("test", vocab_size)}).items():
    monkeypatch.setattr(beam, name, value)


@pytest.mark.slow
def test_without_peers_it_measures_ours_and_says_so(small, monkeypatch):
  monkeypatch.setattr(beam, "_has_transformers", lambda: False)
  lines = list(beam.run())
  assert any("measured alone" in line.get("note", "") for line in lines)
  ours = {line["peer"]: line["times_ours"] for line in lines if line.get("case") == "2x3"}
  assert ours["gr2_jax"] == 1.0 and set(ours) == {"gr2_jax", "gr2_jax dense"}
  assert lines[-1]["device_mb"] > 0


def test_only_ties_may_change_places():
  codes, log_probs = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]]]), np.array([[-1.0, -1.00001, -2.0, -3.0]])
  beam._check_same("peer", (codes[:, [1, 0, 2, 3]], log_probs), (codes, log_probs))
  with pytest.raises(AssertionError, match="2 of 4 items differ"):
    beam._check_same("peer", (codes[:, [0, 1, 3, 2]], log_probs), (codes, log_probs))
  with pytest.raises(AssertionError, match="peer"):
    beam._check_same("peer", (codes, log_probs + 0.01), (codes, log_probs))


def test_transformers_finds_the_same_items(small):
  pytest.importorskip("transformers")
  lines = {line["peer"]: line for line in beam._compare(2, 3)}
  assert lines["transformers"]["median_ms"] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_converted_parameters_give_the_same_logits(tied):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  config = dataclasses.replace(preset("test", 50), tie_embedding=tied)
  keys = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), init_params(Decoder(config), jax.random.key(0)))
  tokens = np.random.default_rng(0).integers(50, size=(2, 9))
  positions = np.broadcast_to(np.arange(9), tokens.shape)
  hidden, _ = Decoder(config).apply({"params": params}, tokens, positions, np.ones_like(tokens))
  logits = Decoder(config).apply({"params": params}, hidden, method="logits")
  with torch.no_grad():
    theirs = to_hf_qwen3(config, params)(torch.from_numpy(tokens)).logits.numpy()
  np.testing.assert_allclose(theirs, logits, atol=1e-4)
