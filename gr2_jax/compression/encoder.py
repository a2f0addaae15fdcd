"""Soft slots: an encoder that turns an item's tokens into a few vectors, which the frozen decoder reads in their place.

Memory vectors for a frozen decoder as in ICAE (arXiv 2307.06945), but a fixed number for each item, so that they are computed once an
item. They start as the embeddings of the item's codes, which mid-training made a short description of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

_HEADS = 4


class SlotEncoder(nn.Module):
  """`slots` queries of each item attend to its tokens; what they find is added to the embeddings of its codes. `width`: hidden width."""

  slots: int
  width: int

  @nn.compact
  def __call__(self, embeddings: jax.Array, mask: jax.Array, base: jax.Array) -> jax.Array:
    """Memory `[N, m, D]` of items with token `embeddings [N, T, D]` (`mask [N, T]` true at real ones) and `base [N, m, D]`.

    It is `base` exactly before the first update.
    """
    features = base.shape[-1]
    x = nn.LayerNorm(name="token_norm")(embeddings)
    query = self.param("query", nn.initializers.normal(1.0), (self.slots, features))
    q = nn.LayerNorm(name="slot_norm")(base) + query
    attend = nn.MultiHeadDotProductAttention(_HEADS, qkv_features=self.width, out_features=features, name="attention")
    q = q + attend(q, x, mask=(mask > 0)[:, None, None, :])
    hidden = nn.gelu(nn.Dense(self.width, name="up")(nn.LayerNorm(name="mlp_norm")(q)))
    return base + nn.Dense(features, kernel_init=nn.initializers.zeros_init(), name="down")(hidden)


def code_slots(table: jax.Array, sid_tokens: jax.Array, slots: int) -> jax.Array:
  """Where slots start: embeddings of the codes, `[N, m, D]` from the token `table [V, D]` and code tokens `sid_tokens [N, levels]`.

  Fewer slots than levels share the levels in order and take means; of more, slot j takes level j modulo their number.
  """
  levels = sid_tokens.shape[1]
  codes = jnp.take(table, sid_tokens, axis=0)
  if slots >= levels:
    return codes[:, np.arange(slots) % levels]
  return jnp.stack([codes[:, part].mean(axis=1) for part in np.array_split(np.arange(levels), slots)], axis=1)


def encode_items(encoder: SlotEncoder, params, table: jax.Array, tokens: jax.Array, mask: jax.Array, sid_tokens: jax.Array) -> jax.Array:
  """Memory `[N * m, D]` of items, slots of an item side by side; tokens, mask `[N, T]`, `sid_tokens [N, levels]`, `table [V, D]`."""
  base = code_slots(table, sid_tokens, encoder.slots)
  memory = encoder.apply({"params": params}, jnp.take(table, tokens, axis=0), mask, base)
  return memory.reshape(-1, memory.shape[-1])


def slot_ids(rows: np.ndarray, slots: int) -> np.ndarray:
  """Ids `[n * m]` by which a decoder finds the slots of items `rows [n]` in the memory (`Decoder`: -1 - s is row s)."""
  return (-1 - (np.asarray(rows, np.int64)[:, None] * slots + np.arange(slots))).reshape(-1)


def init_encoder(encoder: SlotEncoder, key: jax.Array, features: int):
  """Fresh parameters for a decoder of width `features`."""
  zeros = jnp.zeros((1, 1, features))
  return encoder.init(key, zeros, jnp.ones((1, 1), bool), jnp.zeros((1, encoder.slots, features)))["params"]
