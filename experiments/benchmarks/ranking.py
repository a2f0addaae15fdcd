"""Ranking metrics against rax, ranx and pytrec_eval, and on an accelerator the kernel against its memory bandwidth.

The set is NDCG@5, MRR and R@5 of whole lists with binary labels, on which all peers agree. What is timed is the metrics: rankings
for gr2_jax, scores for rax, and for ranx and pytrec_eval their own structures, whose building is counted apart (`build_s`).
`gr2_jax from scores` also sorts the scores, as rax must.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.timing import time_call, time_interleaved
from gr2_jax.kernels.rank_reward import api, reference
from gr2_jax.kernels.rank_reward.api import RankRewardOptions, RankTerms
from gr2_jax.runs.versions import describe_machine

_SIZES = ((20_000, 10), (2_000, 1_000))
_OPTIONS = RankRewardOptions(cutoffs=(5,))
_PACKAGES = ("jax", "rax", "ranx", "pytrec-eval-terrier", "numba", "numpy")


_Judged = Mapping[str, Mapping[str, float]]  # query -> item -> relevance or score


class _Peer(NamedTuple):
  compute: Callable[[], Any]  # what is timed
  read: Callable[[Any], Any] = lambda result: result  # its result as [3, n]: NDCG@5, MRR, R@5
  build_s: float = 0.0


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, then a line for each peer and size with its median and how many times as long as gr2_jax it takes."""
  yield {"machine": describe_machine(_PACKAGES)}
  for n, k in _SIZES:
    yield from _compare(n, k)
  if jax.default_backend() != "cpu":
    yield from _measure_bandwidth()


def _compare(n: int, k: int) -> Iterator[dict[str, Any]]:
  rng = np.random.default_rng(0)
  rankings = rng.permuted(np.tile(np.arange(k, dtype=np.int32), (n, 1)), axis=1)
  scores = -np.argsort(rankings, axis=1).astype(np.float32)
  labels = (rng.random((n, k)) < 0.2).astype(np.float32)
  labels[np.arange(n), rng.integers(k, size=n)] = 1  # peers differ on lists without any positive
  peers = _make_peers(rankings, scores, labels)
  first = {name: time_call(peer.compute) for name, peer in peers.items()}
  results = {name: np.asarray(peer.read(first[name][1])) for name, peer in peers.items()}
  for name, result in results.items():
    np.testing.assert_allclose(result, results["gr2_jax"], atol=1e-5, err_msg=name)
  medians = time_interleaved({name: peer.compute for name, peer in peers.items()})
  for name, median in medians.items():
    yield {
      "case": f"{n}x{k}",
      "peer": name,
      "first_call_s": round(first[name][0].wall, 3),
      "build_s": round(peers[name].build_s, 3),
      "median_ms": round(median.wall * 1e3, 3),
      "times_ours": round(median.wall / medians["gr2_jax"].wall, 2),
      "processor_ms": round(median.processor * 1e3, 3),
      "times_our_processor": round(median.processor / medians["gr2_jax"].processor, 2),
    }


def _make_peers(rankings: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, _Peer]:
  device_rankings, device_scores, device_labels = map(jax.device_put, (rankings, scores, labels))

  def pick(terms: RankTerms) -> tuple[jax.Array, jax.Array, jax.Array]:
    return terms.ndcg[:, 0], terms.mrr, terms.recall[:, 0]

  @jax.jit
  def ours(rankings: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return pick(api.rank_terms(rankings, labels, options=_OPTIONS))

  @jax.jit
  def ours_from_scores(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return pick(api.rank_terms(jnp.argsort(-scores, axis=-1), labels, options=_OPTIONS))

  @jax.jit
  def plain(rankings: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    natural = jnp.broadcast_to(jnp.arange(rankings.shape[1]), rankings.shape)
    return pick(reference.rank_terms(rankings, labels, natural, natural, jnp.ones_like(labels), _OPTIONS))

  peers = {
    "gr2_jax": _Peer(lambda: ours(device_rankings, device_labels)),
    "gr2_jax from scores": _Peer(lambda: ours_from_scores(device_scores, device_labels)),
    "gr2_jax all terms": _Peer(lambda: api.rank_terms(device_rankings, device_labels, options=_OPTIONS), pick),
  }
  if jax.default_backend() != "cpu":
    peers["gr2_jax reference path"] = _Peer(lambda: plain(device_rankings, device_labels))
  if importlib.util.find_spec("rax"):
    peers["rax"] = _make_rax(device_scores, device_labels)
  if importlib.util.find_spec("ranx") or importlib.util.find_spec("pytrec_eval"):
    start = time.perf_counter()
    queries, items = [f"{i:06}" for i in range(len(labels))], [f"{j:06}" for j in range(labels.shape[1])]
    relevance = {q: dict(zip(items, row, strict=True)) for q, row in zip(queries, labels.astype(int).tolist(), strict=True)}
    scored = {q: dict(zip(items, row, strict=True)) for q, row in zip(queries, scores.tolist(), strict=True)}
    dicts_s = time.perf_counter() - start
    if importlib.util.find_spec("ranx"):
      peers["ranx"] = _make_ranx(relevance, scored, dicts_s)
    if importlib.util.find_spec("pytrec_eval"):
      peers["pytrec_eval"] = _make_pytrec_eval(relevance, scored, dicts_s)
  return peers


def _make_rax(scores: jax.Array, labels: jax.Array) -> _Peer:
  import rax

  @jax.jit
  def compute(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (
      rax.ndcg_metric(scores, labels, topn=5, reduce_fn=None),
      rax.mrr_metric(scores, labels, reduce_fn=None),
      rax.recall_metric(scores, labels, topn=5, reduce_fn=None),
    )

  return _Peer(lambda: compute(scores, labels))


def _make_ranx(relevance: _Judged, scored: _Judged, dicts_s: float) -> _Peer:
  import ranx

  start = time.perf_counter()
  qrels, runs = ranx.Qrels(relevance).to_typed_list(), ranx.Run(scored).to_typed_list()
  metrics = ["ndcg@5", "mrr", "recall@5"]
  return _Peer(
    lambda: ranx.evaluate(qrels, runs, metrics, return_mean=False),
    lambda result: [result[name] for name in metrics],
    dicts_s + time.perf_counter() - start,
  )


def _make_pytrec_eval(relevance: _Judged, scored: _Judged, dicts_s: float) -> _Peer:
  import pytrec_eval

  start = time.perf_counter()
  evaluator = pytrec_eval.RelevanceEvaluator(relevance, {"ndcg_cut.5", "recip_rank", "recall.5"})
  return _Peer(
    lambda: evaluator.evaluate(scored),
    lambda result: [[result[query][name] for query in relevance] for name in ("ndcg_cut_5", "recip_rank", "recall_5")],
    dicts_s + time.perf_counter() - start,
  )


def _measure_bandwidth() -> Iterator[dict[str, Any]]:
  """All terms by the kernel; `fraction_of_copy`: bytes a second it must move at least, over those of a plain copy."""
  copied = _measure_copy()
  for n in (10_000, 100_000, 1_000_000, 10_000_000):
    for k in (10, 32, 100, 1_024):
      if n * k > 200_000_000:  # six lists of so many numbers, padded, still fit into 16 GB
        continue
      rankings = jnp.argsort(jax.random.uniform(jax.random.key(0), (n, k)), axis=-1).astype(jnp.int32)
      labels = (jax.random.uniform(jax.random.key(1), (n, k)) < 0.2).astype(jnp.float32)
      compute = functools.partial(api.rank_terms, rankings, labels, options=_OPTIONS)
      moved = rankings.nbytes + labels.nbytes + sum(x.nbytes for x in compute())
      seconds = time_interleaved({"kernel": compute})["kernel"].wall
      yield {
        "case": f"{n}x{k}",
        "peer": "gr2_jax all terms",
        "median_ms": round(seconds * 1e3, 3),
        "lists_per_s": round(n / seconds),
        "fraction_of_copy": round(moved / seconds / copied, 3),
      }


def _measure_copy() -> float:
  """Bytes a second that the device reads and writes in copying 1 GiB."""
  block = jnp.zeros(1 << 28, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  return 2 * block.nbytes / time_interleaved({"copy": lambda: copy(block)})["copy"].wall
