"""The scored policy: a slate in packed positions, one an item, and a score for every candidate from one pass of the decoder."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gr2_jax.models.cache import Prefix
from gr2_jax.models.config import ModelConfig
from gr2_jax.models.transformer import Decoder, table_param


class PackedSlates(NamedTuple):
  """P slates of at most K candidates after at most H past items.

  `facts [P, K, F]` of the candidates; `real [P, K]` true at candidates; `past [P, H]` true at past items, the latest last; `content
  [P, K, C]` and `past_content [P, H, C]`: the items' text vectors of length 1, both zero wide (C = 0) where the policy reads none.
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
  Between slate and answer there may be a reasoning, tokens of the decoder's vocabulary (`rollout.reasoned`): `read` gives what it follows,
  and in `answer` the candidates come once more, behind it.
  `dropout` leaves out that share of the packed values in training, and `content_dropout` the text vectors of all candidates of that share
  of the slates. `edges [F, B + 1]` are those of `FactCodes`, for the `shape` (F, B).
  """

  config: ModelConfig
  shape: tuple[int, int]
  prior: int | None = None
  content_dim: int = 0
  dropout: float = 0.0
  content_dropout: float = 0.0
  first_name: int | None = None

  def setup(self) -> None:
    facts, bins = self.shape
    self.facts = table_param(self, "facts", facts**-0.5, facts, bins)
    self.marker = table_param(self, "marker", 0.02, 3)  # past items, candidates, and candidates behind a reasoning
    self.head = table_param(self, "head", 0.02)
    if self.content_dim:
      self.content = table_param(self, "content", 1.0, self.content_dim)
      self.drop_content = nn.Dropout(self.content_dropout, broadcast_dims=(1, 2))
    if self.prior is not None:
      self.prior_weight = self.param("prior", nn.initializers.ones, ())
    self.decoder = Decoder(self.config)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, slates: PackedSlates, edges: jax.Array, *, deterministic: bool = True) -> jax.Array:
    packed = self._pack(slates, edges, deterministic)
    hidden, _ = self._decode(self._behind_history(slates, packed, deterministic), slates)
    return self._score(hidden[:, -packed.shape[1] :], slates)

  def read(self, slates: PackedSlates, edges: jax.Array, *, deterministic: bool = True) -> Prefix:
    """Keys and values of the slates, behind which a reasoning begins."""
    packed = self._behind_history(slates, self._pack(slates, edges, deterministic), deterministic)
    _, (k, v) = self._decode(packed, slates)
    rows, length = packed.shape[:2]
    return Prefix(k=k, v=v, mask=self._seen(slates, length), positions=self._places(slates, rows, length))

  def answer(self, slates: PackedSlates, edges: jax.Array, thought: Prefix, lengths: jax.Array, *, deterministic: bool = True) -> jax.Array:
    """Scores `[P * G, K]` behind G reasonings about each slate: their keys and values `thought`, `lengths [P * G]`, slate included."""
    group = len(lengths) // len(slates.real)
    packed = jnp.repeat(self._pack(slates, edges, deterministic, marker=2), group, axis=0)
    rows, size = packed.shape[:2]
    real = jnp.repeat(slates.real, group, axis=0)
    ids = jnp.broadcast_to(-1 - jnp.arange(size), (rows, size))
    places = jnp.broadcast_to(lengths[:, None], (rows, size))
    hidden, _ = self.decoder(ids, places, real.astype(jnp.int32), prefix=thought, memory=packed)
    facts = jnp.repeat(slates.facts, group, axis=0)
    return self._score(hidden, slates._replace(facts=facts))

  def _pack(self, slates: PackedSlates, edges: jax.Array, deterministic: bool, marker: int = 1) -> jax.Array:
    packed = jnp.einsum("pkfb,fbd->pkd", piecewise_linear(slates.facts, edges), self.facts) + self.marker[marker]
    if self.content_dim:
      packed += self.drop_content(slates.content, deterministic=deterministic) @ self.content
    if self.first_name is not None:
      names = self.decoder.embed(self.first_name + jnp.arange(packed.shape[1])).astype(jnp.float32)
      packed += names * jax.lax.rsqrt(jnp.mean(jnp.square(names), axis=-1, keepdims=True) + self.config.norm_eps)
    return self.drop(packed, deterministic=deterministic)

  def _behind_history(self, slates: PackedSlates, packed: jax.Array, deterministic: bool) -> jax.Array:
    if not self.content_dim:
      return packed
    past = self.drop(slates.past_content @ self.content + self.marker[0], deterministic=deterministic)
    return jnp.concatenate([past, packed], axis=1)

  def _seen(self, slates: PackedSlates, length: int) -> jax.Array:
    return jnp.concatenate([slates.past, slates.real], axis=1)[:, -length:]

  def _decode(self, packed: jax.Array, slates: PackedSlates) -> tuple[jax.Array, Any]:
    rows, length = packed.shape[:2]
    ids, places = jnp.broadcast_to(-1 - jnp.arange(length), (rows, length)), self._places(slates, rows, length)
    return self.decoder(ids, places, self._seen(slates, length).astype(jnp.int32), memory=packed)

  def _places(self, slates: PackedSlates, rows: int, length: int) -> jax.Array:
    """Positions `[rows, length]`: past items one after the other, and all candidates behind them."""
    return jnp.broadcast_to(jnp.minimum(jnp.arange(length), length - slates.real.shape[1]), (rows, length))

  def _score(self, hidden: jax.Array, slates: PackedSlates) -> jax.Array:
    scores = jnp.einsum("pkd,d->pk", hidden.astype(jnp.float32), self.head.astype(jnp.float32))
    return scores if self.prior is None else scores + self.prior_weight * slates.facts[..., self.prior]

  def example(self) -> tuple[PackedSlates, jax.Array]:
    """The smallest arguments, see `init_boxed`."""
    facts, bins = self.shape
    one, content = jnp.ones((1, 1), bool), jnp.zeros((1, 1, self.content_dim))
    return PackedSlates(jnp.zeros((1, 1, facts)), one, one, content, content), jnp.zeros((facts, bins + 1))
