"""Semantic IDs from vectors to trie: training, codes of a catalogue, unique export; beside faiss's residual quantizer on the same vectors.

faiss quantises the vectors themselves, greedily (a beam of 1: plain residual k-means) or with its default beam; the RQ-VAE quantises
what its encoder makes of them. Both are judged by the share R² of the vectors' variance that comes back, and by how many items share
their codes. One run takes long and is measured once.
"""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.timing import Timing, time_call
from gr2_jax.runs.versions import describe_machine
from gr2_jax.semantic_ids.export import assign_codes, random_last_level
from gr2_jax.semantic_ids.rqvae import RqVaeConfig
from gr2_jax.semantic_ids.table import uniqueness
from gr2_jax.semantic_ids.trie import SidTrie
from gr2_jax.steps.tokenizer import TokenizerConfig, train_tokenizer


class _Catalogue(NamedTuple):
  items: int
  width: int
  trained: int  # items that the quantizers learn from
  epochs: int
  report_every: int


# The size of Amazon Beauty with text embeddings, and a million items, coded by what was learnt from a sample of them.
_CATALOGUES = (_Catalogue(12_101, 768, 12_101, 30, 5), _Catalogue(1_000_000, 64, 16_384, 30, 5))
_RQVAE = RqVaeConfig()
_BITS = 8  # of a code: faiss packs each into a byte
_CHUNK = 65_536  # rows that faiss codes at once: a beam over a million takes more than 6 GB
_TRIES = (100_000, 1_000_000, 10_000_000)


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, for each catalogue a line for gr2_jax and for each peer, and a line for each size of trie."""
  yield {"machine": describe_machine(("jax", "faiss-cpu", "numpy"))}
  if not _has_faiss():
    yield {"note": "faiss is not installed: gr2_jax is measured alone"}
  for catalogue in _CATALOGUES:
    yield from _compare(catalogue)
  for items in _TRIES:
    yield _measure_trie(items)


def _has_faiss() -> bool:
  return importlib.util.find_spec("faiss") is not None


def _compare(catalogue: _Catalogue) -> Iterator[dict[str, Any]]:
  vectors = _make_vectors(catalogue)
  case = {"case": f"{catalogue.items}x{catalogue.width}"}
  yield case | {"peer": "gr2_jax"} | _measure_ours(vectors, catalogue)
  if _has_faiss():
    for beam in (1, 5):
      yield case | {"peer": f"faiss beam {beam}"} | _measure_faiss(vectors, catalogue, beam)


def _make_vectors(catalogue: _Catalogue) -> np.ndarray:
  """Clusters in clusters, with noise: something to find for two levels, and something left over for the others."""
  rng = np.random.default_rng(0)
  vectors = rng.normal(scale=0.25, size=(catalogue.items, catalogue.width)).astype(np.float32)
  for clusters, scale in ((64, 1.0), (1024, 0.5)):
    centres = rng.normal(scale=scale, size=(clusters, catalogue.width)).astype(np.float32)
    vectors += centres[rng.integers(clusters, size=catalogue.items)]
  return vectors


def _measure_ours(vectors: np.ndarray, catalogue: _Catalogue) -> dict[str, Any]:
  config = TokenizerConfig(rqvae=_RQVAE, epochs=catalogue.epochs, warmup_epochs=catalogue.report_every, report_every=catalogue.report_every)
  reported: list[Timing] = []

  def note_time(*_: Any) -> None:
    reported.append(Timing(time.perf_counter(), time.process_time()))

  training, trained = time_call(lambda: train_tokenizer(vectors[: catalogue.trained], config, 0, note_time))
  assign_codes(trained.best, vectors[:4096], _RQVAE)  # compiles
  encoding, (codes, r2) = time_call(lambda: assign_codes(trained.best, vectors, _RQVAE))
  drawing, unique = time_call(lambda: random_last_level(codes, _RQVAE.codebook_size, seed=0))
  between = Timing(*np.median(np.diff(reported, axis=0), axis=0))  # one report and the next
  learnt = catalogue.trained * catalogue.report_every
  return {
    "epochs": catalogue.epochs,
    "train_s": round(training.wall, 2),
    "train_processor_s": round(training.processor, 2),
    "epoch_items_per_s": round(learnt / between.wall),
    "epoch_items_per_processor_s": round(learnt / between.processor),
    "encode_s": round(encoding.wall, 2),
    "encode_processor_s": round(encoding.processor, 2),
    "last_level_s": round(drawing.wall, 2),
    "last_level_processor_s": round(drawing.processor, 2),
    "r2": round(r2, 4),
    "distinct_share": round(uniqueness(codes)["distinct_share"], 4),
    "exported_distinct_share": round(uniqueness(unique)["distinct_share"], 4),
  }


def _measure_faiss(vectors: np.ndarray, catalogue: _Catalogue, beam: int) -> dict[str, Any]:
  import faiss

  quantizer = faiss.ResidualQuantizer(catalogue.width, _RQVAE.levels, _BITS)
  quantizer.max_beam_size = beam
  training, _ = time_call(lambda: quantizer.train(vectors[: catalogue.trained]))
  chunks = np.array_split(vectors, -(-len(vectors) // _CHUNK))
  encoding, codes = time_call(lambda: np.concatenate([quantizer.compute_codes(chunk) for chunk in chunks]))
  error = np.square(vectors - quantizer.decode(codes)).sum(axis=1).mean()
  variance = np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean()
  return {
    "train_s": round(training.wall, 2),
    "train_processor_s": round(training.processor, 2),
    "encode_s": round(encoding.wall, 2),
    "encode_processor_s": round(encoding.processor, 2),
    "r2": round(float(1 - error / variance), 4),
    "distinct_share": round(uniqueness(codes)["distinct_share"], 4),
  }


def _measure_trie(items: int) -> dict[str, Any]:
  """Building from random codes, and what the compressed and the dense form hold on the device; the latter is counted, not made."""
  codes = np.random.default_rng(0).integers(_RQVAE.codebook_size, size=(items, _RQVAE.levels), dtype=np.uint8)
  building, trie = time_call(lambda: SidTrie.build(codes, _RQVAE.codebook_size))
  return {
    "case": f"trie of {items:,} items",
    "peer": "gr2_jax",
    "states": trie.num_states,
    "build_s": round(building.wall, 2),
    "build_processor_s": round(building.processor, 3),
    "compressed_mb": round((trie.last_code.nbytes + trie.first_child.nbytes) / 1e6, 1),
    "dense_mb": round(4 * trie.num_states * trie.codebook_size / 1e6, 1),
    "host_mb": round((trie.leaf_items.nbytes + trie.leaf_start.nbytes) / 1e6, 1),
  }
