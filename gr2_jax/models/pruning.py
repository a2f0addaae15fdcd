"""Depth pruning: which layers change the hidden state least, and the decoder without them (ShortGPT, arXiv 2403.03853)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.scorer import PackedSlates, SlateScorer
from gr2_jax.models.transformer import Decoder


def block_influence(decoder: Decoder, params: Any, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum over real tokens of 1 - cosine between each layer's input and output `[layers]`, float32, and the number of tokens.

  tokens, mask `[B, T]` left-aligned. Sum over count is the block influence; both add up over batches.
  """
  segments = mask.astype(jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  _, seen = decoder.apply({"params": params}, tokens, positions, segments, mutable=["intermediates"])
  return _sum_changes(seen["intermediates"], segments)


def scored_block_influence(model: SlateScorer, params: Any, slates: PackedSlates, edges: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`block_influence` of a scored policy's decoder on past items and candidates."""
  _, seen = model.apply({"params": params}, slates, edges, mutable=["intermediates"])
  of_decoder = seen["intermediates"]["decoder"]
  length = of_decoder["embedded"][0].shape[1]  # without texts past items are not read
  return _sum_changes(of_decoder, jnp.concatenate([slates.past, slates.real], axis=1)[:, -length:].astype(jnp.int32))


def _sum_changes(seen: Any, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
  (embedded,), (outputs,) = seen["embedded"], seen["layers"]["output"]

  def compare(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide_x, wide_y = x.astype(jnp.float32), y.astype(jnp.float32)
    norms = jnp.linalg.norm(wide_x, axis=-1) * jnp.linalg.norm(wide_y, axis=-1)
    cosine = jnp.sum(wide_x * wide_y, axis=-1) / jnp.maximum(norms, 1e-12)
    return y, jnp.sum((1 - cosine) * segments)

  _, changes = jax.lax.scan(compare, embedded, outputs)
  return changes, segments.sum()


def choose_layers(influence: np.ndarray, number: int) -> list[int]:
  """The `number` layers of most influence `[layers]`, from the bottom up; of equal ones the lower. Raises ValueError out of range."""
  if not 1 <= number <= len(influence):
    raise ValueError(f"layers: {number} of {len(influence)} cannot be kept")
  return sorted(np.argsort(-np.asarray(influence), kind="stable")[:number].tolist())


def prune_config(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
  """The shape of a model with these of its layers; those that see a window alone keep theirs."""
  local = config.local and dataclasses.replace(config.local, layers=tuple(config.local.layers[layer] for layer in layers))
  return dataclasses.replace(config, num_layers=len(layers), local=local)


def prune_decoder(decoder: Decoder, layers: Sequence[int]) -> Decoder:
  """The same decoder with these of its layers."""
  return Decoder(prune_config(decoder.config, layers))


def prune_params(params: Any, layers: Sequence[int]) -> Any:
  """Parameters of the pruned decoder: those of `layers`, and all that is no layer."""
  return {**params, "layers": jax.tree.map(lambda x: x[jnp.asarray(layers)], params["layers"])}
