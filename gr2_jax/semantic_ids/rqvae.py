"""Residual-quantised autoencoder: item vector -> latent -> one code a level, each coding what the levels before left over.

Notation of GR2 2.1: h is the latent, r_k the residual that enters level k, e the centroids, z the codes:
r_1 = h, z_k = argmin_j ||r_k - e_j||, r_{k+1} = r_k - e_{z_k}, so that h = Σ_k e_{z_k} + r_{L+1}.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from flax import linen as nn
from jax.lax import Precision
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from gr2_jax.data.schema import DataError
from gr2_jax.settings import check_settings, setting, spread

LAPLACE_EPSILON = 1e-5
MOST_LEVELS = 26  # which are written as letters


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
  """`levels` codes of `codebook_size` values; MLP `hidden` to `latent` and mirrored back (TIGER's and GR2's sizes). Raises ValueError."""

  levels: int = 4
  codebook_size: int = 256
  latent: int = setting(32, "width of the vector that is quantised", low=1)
  hidden: tuple[int, ...] = setting((512, 256, 128), "widths of the encoder's layers, which the decoder mirrors", low=1)
  beta: float = setting(0.25, "weight of the commitment loss", low=0)
  ema_decay: float = setting(0.99, "decay γ of the codebooks' moving averages; the paper's range is 0.95 to 0.99", low=0, below=1)
  kmeans_samples: int = setting(8192, "items from which k-means starts the codebooks, at most", unit="items", low=1)

  def __post_init__(self) -> None:
    if not 1 <= self.levels <= MOST_LEVELS:
      raise ValueError(f"levels: {self.levels} must be at least 1 and at most {MOST_LEVELS}")
    if self.codebook_size < 2:
      raise ValueError(f"codebook_size: {self.codebook_size} must be at least 2")
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class RqVaeOptions:
  """The tokenizer as it stands in a config, where its size may follow from that of the catalogue (`sizes.choose_sizes`). Raises
  ValueError.
  """

  levels: int | None = setting(None, "codes of an item; None: by the size of the catalogue", unit="codes", low=1, high=MOST_LEVELS)
  codebook_size: int | None = setting(None, "values of a code; None: by the size of the catalogue", unit="codes", low=2)
  network: RqVaeConfig = spread(RqVaeConfig())

  def __post_init__(self) -> None:
    check_settings(self)


def read_rqvae_config(section: Mapping[str, Any], levels: int, size: int) -> RqVaeConfig:
  """The record of a config's section; `levels` and codebook `size` stand for those that the section leaves open. Raises ValueError."""
  given = {name: value for name, value in section.items() if value is not None}
  return RqVaeConfig(**{"levels": levels, "codebook_size": size} | given | {"hidden": tuple(section["hidden"])})


class Autoencoder(nn.Module):
  """ReLU MLPs `[B, D] -> [B, latent]` (`encode`) and back (`decode`), mirrored."""

  hidden: tuple[int, ...]
  latent: int
  width: int

  def setup(self) -> None:
    self.encoder = [nn.Dense(width) for width in (*self.hidden, self.latent)]
    self.decoder = [nn.Dense(width) for width in (*self.hidden[::-1], self.width)]

  def __call__(self, vectors: jax.Array) -> jax.Array:
    return self.decode(self.encode(vectors))

  def encode(self, vectors: jax.Array) -> jax.Array:
    return _mlp(self.encoder, vectors)

  def decode(self, latents: jax.Array) -> jax.Array:
    return _mlp(self.decoder, latents)


def _mlp(layers: Sequence[nn.Dense], x: jax.Array) -> jax.Array:
  for layer in layers[:-1]:
    x = nn.relu(layer(x))
  return layers[-1](x)


def make_autoencoder(config: RqVaeConfig, width: int) -> Autoencoder:
  """The networks of `config` for vectors of `width` dimensions."""
  return Autoencoder(hidden=config.hidden, latent=config.latent, width=width)


@flax.struct.dataclass
class Codebooks:
  """Running statistics of each code: `counts [L, C]` rows and `sums [L, C, d]` of their residuals, both per batch."""

  counts: jax.Array
  sums: jax.Array


@flax.struct.dataclass
class RqVae:
  """All that export needs: the `params` of the `Autoencoder` and the codebooks."""

  params: Any
  codebooks: Codebooks


def save_rqvae(rqvae: RqVae, path: str | Path) -> None:
  """Writes the tokenizer as one file, so that an item which comes later can be given codes."""
  Path(path).write_bytes(flax.serialization.to_bytes(jax.device_get(rqvae)))


def load_rqvae(path: str | Path) -> RqVae:
  """Reads what `save_rqvae` wrote; raises DataError for any other file."""
  try:
    state = flax.serialization.msgpack_restore(Path(path).read_bytes())
    return RqVae(params=state["params"], codebooks=Codebooks(**state["codebooks"]))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(f"{path}: is no tokenizer ({error}); run the tokenize stage again") from None


@flax.struct.dataclass
class Quantized:
  """`codes [B, L]` int32, `latents [B, d]` = Σ_k e_{z_k}, `residuals [L + 1, B, d]`: k enters level k, the last one is left over."""

  codes: jax.Array
  latents: jax.Array
  residuals: jax.Array


def centroids(codebooks: Codebooks) -> jax.Array:
  """`[L, C, d]`: e_j = m_j / ((N_j + ε) / (N + Cε) N), N = Σ_j N_j: Laplace smoothing keeps unused codes finite (VQ-VAE, 2017)."""
  total = codebooks.counts.sum(axis=-1, keepdims=True)
  size = codebooks.counts.shape[-1]
  smoothed = (codebooks.counts + LAPLACE_EPSILON) / (total + size * LAPLACE_EPSILON) * total
  return codebooks.sums / smoothed[..., None]


def quantize(tables: jax.Array, latents: jax.Array) -> Quantized:
  """Nearest centroid level by level: tables `[L, C, d]`, latents `[B, d]`. Gradients reach the residuals, never the tables."""
  tables = jax.lax.stop_gradient(tables)

  def level(residual: jax.Array, table: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # ||r||² is the same for every code. Full precision: a TPU's default bfloat16 product would flip near ties.
    products = jnp.matmul(residual, table.T, precision=Precision.HIGHEST)
    distances = jnp.square(table).sum(axis=-1) - 2 * products
    # The first minimum. XLA's argmin runs on a CPU as a scalar loop, 3 times slower.
    is_nearest = distances == distances.min(axis=-1, keepdims=True)
    codes = jnp.where(is_nearest, jnp.arange(len(table), dtype=jnp.int32), len(table)).min(axis=-1)
    return residual - table[codes], (codes, residual)

  left, (codes, entered) = jax.lax.scan(level, latents, tables)
  residuals = jnp.concatenate([entered, left[None]])
  return Quantized(codes=codes.T, latents=jax.lax.stop_gradient(latents - left), residuals=residuals)


def straight_through(latents: jax.Array, quantized: jax.Array) -> jax.Array:
  """The value of `quantized`, the gradient of `latents`."""
  return latents + jax.lax.stop_gradient(quantized - latents)


def update_codebooks(codebooks: Codebooks, quantized: Quantized, weights: jax.Array, decay: float) -> Codebooks:
  """One EMA step: N_j ← γN_j + (1-γ)n_j, m_j ← γm_j + (1-γ)Σr over the batch's rows of code j, weights `[B]` (0 = padding).

  Cluster means, reading (a) of GR2 2.2; the one-hot products reduce over a sharded batch without a scatter.
  """
  size = codebooks.counts.shape[-1]
  assigned = jax.nn.one_hot(quantized.codes.T, size) * weights[:, None]
  sums = jnp.einsum("lbc,lbd->lcd", assigned, quantized.residuals[:-1], precision=Precision.HIGHEST)
  return Codebooks(
    counts=decay * codebooks.counts + (1 - decay) * assigned.sum(axis=1),
    sums=decay * codebooks.sums + (1 - decay) * sums,
  )


def rqvae_loss(
  model: Autoencoder, params: Any, tables: jax.Array, batch: dict[str, jax.Array], beta: float
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Quantized]]:
  """||x - x̂||² + β Σ_k ||r_k - sg(e_{z_k})||², mean over rows; the codebook term is absent since the EMA moves the tables.

  Batch: `vectors [B, D]`, `weights [B]` (0 = padding). Returns (loss, (terms, Quantized)); terms are sums over rows.
  """
  latents = model.apply({"params": params}, batch["vectors"], method="encode")
  quantized = quantize(tables, latents)
  decoded = model.apply({"params": params}, straight_through(latents, quantized.latents), method="decode")
  weights = batch["weights"]
  terms = {
    "reconstruction": (weights * jnp.square(batch["vectors"] - decoded).sum(axis=-1)).sum(),
    "commitment": (weights * jnp.square(quantized.residuals[1:]).sum(axis=(0, 2))).sum(),
  }
  loss = (terms["reconstruction"] + beta * terms["commitment"]) / jnp.maximum(weights.sum(), 1)
  return loss, (terms, quantized)


def start_codebooks(latents: np.ndarray, config: RqVaeConfig, batch_rows: int, seed: int) -> Codebooks:
  """k-means++ on the residuals, level by level, over at most `kmeans_samples` rows of latents `[N, d]`.

  `batch_rows` scales the counts to those of one batch, the unit of later EMA steps. Where a level has fewer distinct residuals than
  codes, the codes left over start unused, at the origin.
  """
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(latents))[: config.kmeans_samples]
  residuals = np.asarray(latents, np.float32)[rows]
  scale = batch_rows / len(rows)
  counts = np.zeros((config.levels, config.codebook_size), np.float32)
  sums = np.zeros((config.levels, config.codebook_size, residuals.shape[1]), np.float32)
  for level in range(config.levels):
    clusters = min(config.codebook_size, len(np.unique(residuals, axis=0)))
    # One thread: with more, the order of the partial sums, and so the last bits, may change from run to run.
    with threadpoolctl.threadpool_limits(limits=1), warnings.catch_warnings():
      warnings.simplefilter("ignore", ConvergenceWarning)  # clusters that stay empty are codes left over, see above
      fitted = KMeans(clusters, n_init=1, max_iter=50, random_state=seed + level).fit(residuals)
    counts[level, :clusters] = np.bincount(fitted.labels_, minlength=clusters) * scale
    sums[level, :clusters] = fitted.cluster_centers_ * counts[level, :clusters, None]
    residuals = residuals - fitted.cluster_centers_[fitted.labels_]
  return Codebooks(counts=jnp.asarray(counts), sums=jnp.asarray(sums))
