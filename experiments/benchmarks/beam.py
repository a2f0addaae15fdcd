"""Beam search over a catalogue of semantic IDs against transformers' `generate` with the same weights, and the trie of a large catalogue.

The peer's legal tokens come from `prefix_allowed_tokens_fn`, its usual way; its scores are renormalised over them, as ours are. Both
must find the same items with the same log-probabilities before anything is timed.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.peers import to_hf_qwen3
from experiments.benchmarks.timing import time_call, time_interleaved
from gr2_jax.models.config import ModelConfig, preset
from gr2_jax.models.transformer import Decoder, init_params
from gr2_jax.rollout.beam import make_beam_search
from gr2_jax.runs.versions import describe_machine
from gr2_jax.semantic_ids.trie import CompressedTrie, DenseTrie, SidTrie

_ITEMS, _LEVELS, _CODES, _TEXT, _PROMPT = 12_101, 4, 256, 2_048, 128
_SIZES = ((32, 20), (8, 50))
_LARGE = 10_000_000
_SID_TOKENS = _TEXT + np.arange(_LEVELS * _CODES).reshape(_LEVELS, _CODES)


def run() -> Iterator[dict[str, Any]]:
  """Yields the machine, a line for each peer and size with its median and how many times as long as ours it takes, and the large trie."""
  yield {"machine": describe_machine(("jax", "torch", "transformers", "numpy"))}
  if not _has_transformers():
    yield {"note": "torch and transformers are not both installed: gr2_jax is measured alone"}
  for prompts, beams in _SIZES:
    yield from _compare(prompts, beams)
  yield from _measure_large_trie()


def _has_transformers() -> bool:
  return all(importlib.util.find_spec(package) for package in ("torch", "transformers"))


def _compare(num_prompts: int, beams: int) -> Iterator[dict[str, Any]]:
  rng = np.random.default_rng(0)
  codes = rng.integers(_CODES, size=(_ITEMS, _LEVELS))
  prompts = rng.integers(_TEXT, size=(num_prompts, _PROMPT))
  config = preset("tiny", _TEXT + _LEVELS * _CODES)
  # Fresh weights say nearly the same of all items; three times as large they prefer some, as a trained model does.
  params = jax.tree.map(lambda x: 3 * x, init_params(Decoder(config), jax.random.key(0)))
  trie = SidTrie.build(codes, _CODES)
  search = make_beam_search(Decoder(config), beams=beams, levels=_LEVELS)
  inputs = params, jnp.asarray(prompts, jnp.int32), jnp.ones(prompts.shape, jnp.int32)
  sid_tokens = jnp.asarray(_SID_TOKENS)

  def ours(form: DenseTrie | CompressedTrie) -> Callable[[], tuple[jax.Array, jax.Array]]:
    return lambda: search(*inputs, form, sid_tokens)[:2]

  peers = {"gr2_jax": ours(trie.compressed()), "gr2_jax dense": ours(trie.dense())}
  if _has_transformers():
    peers["transformers"] = _make_transformers(config, params, codes, prompts, beams)
  first = {name: time_call(peer) for name, peer in peers.items()}
  for name, (_, result) in first.items():
    _check_same(name, result, first["gr2_jax"][1])
  medians = time_interleaved(peers, rounds=5)
  for name, median in medians.items():
    yield {
      "case": f"{num_prompts}x{beams}",
      "peer": name,
      "first_call_s": round(first[name][0].wall, 3),
      "median_ms": round(median.wall * 1e3, 3),
      "times_ours": round(median.wall / medians["gr2_jax"].wall, 2),
      "processor_ms": round(median.processor * 1e3, 3),
      "times_our_processor": round(median.processor / medians["gr2_jax"].processor, 2),
    }


def _check_same(name: str, result: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
  """Raises AssertionError unless codes `[P, beams, L]` and log-probabilities `[P, beams]` agree; items that tie may change places."""
  (codes, log_probs), (expected_codes, expected_log_probs) = (map(np.asarray, pair) for pair in (result, expected))
  np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-3, err_msg=name)
  gaps = np.abs(np.diff(expected_log_probs, axis=1))
  ties = np.pad(gaps, ((0, 0), (0, 1)), constant_values=np.inf) < 1e-4
  ties |= np.pad(gaps, ((0, 0), (1, 0)), constant_values=np.inf) < 1e-4
  differ = (codes != expected_codes).any(axis=-1) & ~ties
  assert not differ.any(), f"{name}: {differ.sum()} of {differ.size} items differ"


def _make_transformers(config: ModelConfig, params: Any, codes: np.ndarray, prompts: np.ndarray, beams: int) -> Callable[[], Any]:
  import torch

  model = to_hf_qwen3(config, params)
  children: dict[tuple[int, ...], set[int]] = {}
  for item in _SID_TOKENS[np.arange(_LEVELS), codes].tolist():
    for level in range(_LEVELS):
      children.setdefault(tuple(item[:level]), set()).add(item[level])
  legal = {prefix: sorted(tokens) for prefix, tokens in children.items()}
  tokens = torch.from_numpy(prompts)

  def search() -> tuple[np.ndarray, np.ndarray]:
    output = model.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      do_sample=False,
      num_beams=beams,
      num_return_sequences=beams,
      max_new_tokens=_LEVELS,
      length_penalty=0.0,  # scores are sums, not means
      renormalize_logits=True,
      prefix_allowed_tokens_fn=lambda _, sequence: legal[tuple(sequence[_PROMPT:].tolist())],
      pad_token_id=0,
      return_dict_in_generate=True,
      output_scores=True,
    )
    found = output.sequences[:, _PROMPT:].reshape(len(prompts), beams, _LEVELS).numpy()
    return found - _SID_TOKENS[:, 0], output.sequences_scores.reshape(len(prompts), beams).numpy()

  return search


def _measure_large_trie() -> Iterator[dict[str, Any]]:
  """Building, memory, and one step's look-up for 640 beams at the level that has most states to choose from."""
  codes = np.random.default_rng(0).integers(_CODES, size=(_LARGE, _LEVELS), dtype=np.uint8)
  start = time.perf_counter()
  trie = SidTrie.build(codes, _CODES)
  build_s = time.perf_counter() - start
  form = trie.on_device()
  children = jax.jit(type(form).children, static_argnums=2)
  states = jax.random.randint(jax.random.key(0), (32, 20), trie.first_leaf - _LARGE // 2, trie.first_leaf)
  look_up = lambda: children(form, states, _LEVELS - 1)
  time_call(look_up)
  yield {
    "case": f"trie of {_LARGE:,} items",
    "peer": f"gr2_jax {type(form).__name__}",
    "states": trie.num_states,
    "widths": trie.widths,
    "build_s": round(build_s, 2),
    "device_mb": round(sum(x.nbytes for x in jax.tree.leaves(form)) / 1e6, 1),
    "host_mb": round((trie.leaf_items.nbytes + trie.leaf_start.nbytes) / 1e6, 1),
    "median_ms": round(time_interleaved({"look up": look_up})["look up"].wall * 1e3, 3),
  }
