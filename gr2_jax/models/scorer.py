"""The scored policy: a slate in packed positions, one an item, and a score for every candidate from one pass of the decoder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.config import ModelConfig
from gr2_jax.models.transformer import Decoder


class PackedSlates(NamedTuple):
  """P slates of at most K candidates after at most H past items.

  `facts [P, K, F]` of the candidates; `real [P, K]` true at candidates; `past [P, H]` true at past items, the latest last; `content
  [P, K, C]` and `past_content [P, H, C]`: the items' text vectors, both zero wide (C = 0) where the policy reads none.
  """

  facts: Any
  real: Any
  past: Any
  content: Any
  past_content: Any


def piecewise_linear(facts: jax.Array, edges: jax.Array) -> jax.Array:
  """Codes `[..., F, B]` of facts `[..., F]`: how far each has come through each bin, 0..1. `edges [F, B + 1]` as in `FactCodes`."""
  low, high = edges[:, :-1], edges[:, 1:]
  # A bin without width is a step right behind its edge.
  return jnp.clip((facts[..., None] - low) / jnp.maximum(high - low, 1e-6), 0.0, 1.0)


class SlateScorer(nn.Module):
  """Scores `[P, K]` of `PackedSlates`, float32; those of the padding mean nothing.

  A candidate's position is the sum of its facts' piecewise-linear codes, each times an embedding, and of its text vector; past items stand
  before the candidates by their text vectors alone. Candidates see the history and each other, all at one position, so that the order in
  which they come says nothing but what their facts say of it. To a score comes a learned multiple, 1 at first, of the fact at the place
  `prior`, which is a score itself.
  `dropout` leaves out that share of the packed values in training. `edges [F, B + 1]` are those of `FactCodes`, for the `shape` (F, B).
  """

  config: ModelConfig
  shape: tuple[int, int]
  prior: int | None = None
  content_dim: int = 0
  dropout: float = 0.0

  @nn.compact
  def __call__(self, slates: PackedSlates, edges: jax.Array, *, deterministic: bool = True) -> jax.Array:
    width = self.config.width
    codes, content = piecewise_linear(slates.facts, edges), slates.content.shape[-1]

    def table(name: str, scale: float, *rows: int) -> jax.Array:
      axes = (*(None for _ in rows), "embed")
      return self.param(name, nn.with_logical_partitioning(nn.initializers.normal(scale), axes), (*rows, width))

    packed = jnp.einsum("pkfb,fbd->pkd", codes, table("facts", codes.shape[-2] ** -0.5, *codes.shape[-2:]))
    marker = table("marker", 0.02, 2)
    packed += marker[1]
    past = slates.past.shape[1] if content else 0
    if content:
      kernel = table("content", content**-0.5, content)
      packed = jnp.concatenate([slates.past_content @ kernel + marker[0], packed + slates.content @ kernel], axis=1)
    packed = nn.Dropout(self.dropout, deterministic=deterministic)(packed)
    rows, length = packed.shape[:2]
    ids = jnp.broadcast_to(-1 - jnp.arange(length), (rows, length))
    positions = jnp.broadcast_to(jnp.minimum(jnp.arange(length), past), (rows, length))
    seen = jnp.concatenate([slates.past, slates.real], axis=1)[:, -length:]
    hidden, _ = Decoder(self.config, name="decoder")(ids, positions, seen.astype(jnp.int32), memory=packed)
    scores = jnp.einsum("pkd,d->pk", hidden[:, past:].astype(jnp.float32), table("head", 0.02).astype(jnp.float32))
    if self.prior is not None:
      scores += self.param("prior", nn.initializers.ones, ()) * slates.facts[..., self.prior]
    return scores

  def example(self) -> tuple[PackedSlates, jax.Array]:
    """The smallest arguments, see `init_boxed`."""
    facts, bins = self.shape
    one, content = jnp.ones((1, 1), bool), jnp.zeros((1, 1, self.content_dim))
    return PackedSlates(jnp.zeros((1, 1, facts)), one, one, content, content), jnp.zeros((facts, bins + 1))
