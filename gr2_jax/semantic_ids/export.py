"""From a trained RQ-VAE to the table of semantic IDs, with a report of what the codes are like before and after the last level is drawn."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.data.schema import DataError
from gr2_jax.semantic_ids.rqvae import Autoencoder, RqVae, RqVaeConfig, centroids, make_autoencoder, quantize
from gr2_jax.semantic_ids.sizes import Inputs, count_inputs
from gr2_jax.semantic_ids.table import SemanticIDTable, prefix_groups, uniqueness

MIN_DISTINCT_SHARE = 0.99


@jax.jit(static_argnums=0)
def _encode(model: Autoencoder, rqvae: RqVae, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  latents = model.apply({"params": rqvae.params}, vectors, method="encode")
  quantized = quantize(centroids(rqvae.codebooks), latents)
  decoded = model.apply({"params": rqvae.params}, quantized.latents, method="decode")
  return quantized.codes, jnp.square(vectors - decoded).sum(axis=-1)


def assign_codes(rqvae: RqVae, vectors: np.ndarray, config: RqVaeConfig, rows: int = 4096) -> tuple[np.ndarray, float]:
  """Nearest codes int32 `[N, L]` of vectors `[N, D]` and the reconstruction R² = 1 - MSE / Var, `rows` at a time."""
  model = make_autoencoder(config, vectors.shape[1])
  rows = min(rows, len(vectors))
  codes, errors = [], []
  for start in range(0, len(vectors), rows):
    chunk = vectors[start : start + rows]
    padded = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))  # one shape, compiled once
    chunk_codes, chunk_errors = jax.device_get(_encode(model, rqvae, jnp.asarray(padded)))
    codes.append(chunk_codes[: len(chunk)])
    errors.append(chunk_errors[: len(chunk)])
  variance = np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean()
  error = np.concatenate(errors).mean()
  return np.concatenate(codes), float(1 - error / variance) if variance > 0 else float(error == 0)


def random_last_level(codes: np.ndarray, codebook_size: int, seed: int | Sequence[int], replacement: bool = False) -> np.ndarray:
  """Codes `[N, L]` with the last level drawn at random instead of nearest (GR2 2.2, technique 4).

  Without replacement: distinct values among the items that share the first L-1 codes, so no two items collide in buckets of up to
  `codebook_size`; larger buckets use each value as evenly as possible. With replacement: independent uniform draws, for ablations.
  """
  rng = np.random.default_rng(seed)
  last = rng.integers(codebook_size, size=len(codes))
  if not replacement:
    buckets = prefix_groups(codes[:, :-1])[:, -1]
    order = np.argsort(buckets, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
      rounds = -(-len(members) // codebook_size)
      draws = np.concatenate([rng.permutation(codebook_size) for _ in range(rounds)])
      last[members] = draws[: len(members)]
  return np.concatenate([codes[:, :-1], last[:, None]], axis=1).astype(np.int32)


def draw_apart(codes: np.ndarray, codebook_size: int, seed: int) -> np.ndarray:
  """Codes `[N, L]` with the last level drawn as `random_last_level` does, and as many drawn levels behind it as make all items distinct.

  A level is added where the first L-1 codes are those of more items than a codebook has values, as of many items with the same text.
  """
  drawn = random_last_level(codes, codebook_size, seed)
  while uniqueness(drawn)["distinct_share"] < 1:  # the draws are even, so each level divides a bucket by the whole codebook
    drawn = random_last_level(np.pad(drawn, ((0, 0), (0, 1))), codebook_size, (seed, drawn.shape[1]))
  return drawn


def describe_codes(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
  """Uniqueness by both definitions, use of each level, and sizes of buckets, all JSON-able.

  `levels[k]`: `used` codes, `usage` = used / C, `perplexity` = exp(entropy), `largest_share` of one code over the uniform 1/C.
  `prefix_buckets` and `id_buckets`: size -> number of sets of items that share the first L-1 or all L codes.
  """
  groups = prefix_groups(codes)
  return uniqueness(codes) | {
    "prefix_distinct_share": int(groups[:, -2].max() + 1) / len(codes),
    "levels": [_describe_level(codes[:, level], codebook_size) for level in range(codes.shape[1])],
    "prefix_buckets": _size_histogram(groups[:, -2]),
    "id_buckets": _size_histogram(groups[:, -1]),
  }


def _describe_level(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
  shares = np.bincount(codes, minlength=codebook_size) / len(codes)
  used = shares[shares > 0]
  return {
    "used": len(used),
    "usage": len(used) / codebook_size,
    "perplexity": float(np.exp(-(used * np.log(used)).sum())),
    "largest_share": float(used.max() * codebook_size),
  }


def _size_histogram(groups: np.ndarray) -> dict[str, int]:
  sizes, counts = np.unique(np.bincount(groups), return_counts=True)
  return {str(size): int(count) for size, count in zip(sizes, counts, strict=True)}


def prefix_purity(codes: np.ndarray, labels: np.ndarray) -> list[float]:
  """For prefixes of 1..L codes, the share of items whose label (a category number `[N]`) is the commonest among those with their prefix."""
  labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
  purity = []
  for groups in prefix_groups(codes).T[1:]:
    pairs, counts = np.unique(groups * (labels.max() + 1) + labels, return_counts=True)
    commonest = np.zeros(groups.max() + 1, np.int64)
    np.maximum.at(commonest, pairs // (labels.max() + 1), counts)
    purity.append(float(commonest.sum() / len(codes)))
  return purity


def check_distinct(share: float, inputs: Inputs, last_level: str) -> None:
  """Raises DataError below 99 % distinct IDs; the message tells whether items have the same input, which no training helps."""
  if share >= MIN_DISTINCT_SHARE:
    return
  remedies = ["--config.tokenize.last_level=random"] if last_level != "random" else []
  if inputs.distinct >= MIN_DISTINCT_SHARE * inputs.items:
    remedies += ["more --config.tokenize.training.epochs", "a larger --config.tokenize.rqvae.codebook_size"]
  raise DataError(
    f"semantic IDs: at most {share:.2%} of {inputs.items:,} items are distinct with --config.tokenize.last_level={last_level}, at least "
    f"{MIN_DISTINCT_SHARE:.0%} are needed; there are {inputs.distinct:,} different texts or vectors, and up to {inputs.largest:,} items "
    f"have the same one; use {', '.join(remedies)}, or allow collisions by --config.tokenize.allow_collisions=True"
  )


def export_table(
  rqvae: RqVae,
  vectors: np.ndarray,
  config: RqVaeConfig,
  *,
  seed: int,
  inputs: Inputs | None = None,
  last_level: str = "random",
  allow_collisions: bool = False,
) -> tuple[SemanticIDTable, dict[str, Any]]:
  """The table for vectors `[N, D]` and its report (JSON-able). `inputs`: what the items are told apart by (None: their vectors).

  `last_level`: `random` (drawn without replacement in each prefix bucket, with further drawn levels where a bucket has no room),
  `independent` (with replacement) or `nearest` (as trained). `allow_collisions`: no level is added, and few distinct IDs are no error.
  The report holds `r2` and `describe_codes` both `before` and `after`: after drawing without replacement uniqueness is 1 by
  construction, so only `before`, the learned codes alone, says something about the tokenizer. Raises DataError below 99 % distinct IDs.
  """
  if last_level not in ("random", "independent", "nearest"):
    raise ValueError(f"last_level={last_level!r}; use 'random', 'independent' or 'nearest'")
  inputs = count_inputs(row.tobytes() for row in vectors) if inputs is None else inputs
  codes, r2 = assign_codes(rqvae, vectors, config)
  report: dict[str, Any] = {
    "items": len(codes),
    "distinct_inputs": inputs.distinct,
    "largest_input": inputs.largest,
    "codebook_size": config.codebook_size,
    "last_level": last_level,
    "r2": r2,
    "before": describe_codes(codes, config.codebook_size),
  }
  if last_level == "random" and not allow_collisions:
    codes = draw_apart(codes, config.codebook_size, seed)
  elif last_level != "nearest":
    codes = random_last_level(codes, config.codebook_size, seed, replacement=last_level == "independent")
  report["after"] = describe_codes(codes, config.codebook_size)
  if not allow_collisions:
    check_distinct(report["after"]["distinct_share"], inputs, last_level)
  return SemanticIDTable(codes=codes, codebook_size=config.codebook_size), report
