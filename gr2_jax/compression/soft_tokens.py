"""Soft tokens: an encoder turns an item's tokens into a few vectors, which the frozen decoder reads in their place.

Memory vectors for a frozen decoder as in ICAE (arXiv 2307.06945), but a fixed number for each item, so that they are computed once an
item. They start as the embeddings of the item's codes, which mid-training made a short description of it. They are trained so that the
frozen ranker goes on from them as it does from the full history.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import distillation_terms
from gr2_jax.rollout.completions import completion_hidden, legal_states, make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.update import Loss
from gr2_jax.training.metric import Metric

_HEADS = 4


class SoftTokenEncoder(nn.Module):
  """`per_item` queries of each item attend to its tokens; what they find is added to the embeddings of its codes. `width`: hidden width."""

  per_item: int
  width: int

  @nn.compact
  def __call__(self, embeddings: jax.Array, mask: jax.Array, base: jax.Array) -> jax.Array:
    """Memory `[N, m, D]` of items with token `embeddings [N, T, D]` (`mask [N, T]` true at real ones) and `base [N, m, D]`.

    It is `base` exactly before the first update.
    """
    features = base.shape[-1]
    x = nn.LayerNorm(name="token_norm")(embeddings)
    query = self.param("query", nn.initializers.normal(1.0), (self.per_item, features))
    q = nn.LayerNorm(name="soft_norm")(base) + query
    attend = nn.MultiHeadDotProductAttention(_HEADS, qkv_features=self.width, out_features=features, name="attention")
    q = q + attend(q, x, mask=(mask > 0)[:, None, None, :])
    hidden = nn.gelu(nn.Dense(self.width, name="up")(nn.LayerNorm(name="mlp_norm")(q)))
    return base + nn.Dense(features, kernel_init=nn.initializers.zeros_init(), name="down")(hidden)


def code_soft_tokens(table: jax.Array, sid_tokens: jax.Array, per_item: int) -> jax.Array:
  """Where soft tokens start: embeddings of the codes, `[N, m, D]` from the token `table [V, D]` and code tokens `sid_tokens [N, levels]`.

  Fewer than levels share the levels in order and take means; of more, the j-th takes level j modulo their number.
  """
  levels = sid_tokens.shape[1]
  codes = jnp.take(table, sid_tokens, axis=0)
  if per_item >= levels:
    return codes[:, np.arange(per_item) % levels]
  return jnp.stack([codes[:, part].mean(axis=1) for part in np.array_split(np.arange(levels), per_item)], axis=1)


def encode_items(
  encoder: SoftTokenEncoder, params: Any, table: jax.Array, tokens: jax.Array, mask: jax.Array, sid_tokens: jax.Array
) -> jax.Array:
  """Memory `[N * m, D]` of items, those of an item side by side; tokens, mask `[N, T]`, `sid_tokens [N, levels]`, `table [V, D]`."""
  base = code_soft_tokens(table, sid_tokens, encoder.per_item)
  memory = encoder.apply({"params": params}, jnp.take(table, tokens, axis=0), mask, base)
  return memory.reshape(-1, memory.shape[-1])


def soft_token_ids(rows: np.ndarray | list[int], per_item: int) -> np.ndarray:
  """Ids `[n * m]` by which a decoder finds the soft tokens of items `rows [n]` in the memory (`Decoder`: -1 - s is row s)."""
  return (-1 - (np.asarray(rows, np.int64)[:, None] * per_item + np.arange(per_item))).reshape(-1)


def init_encoder(encoder: SoftTokenEncoder, key: jax.Array, features: int) -> Any:
  """Fresh parameters for a decoder of width `features`."""
  zeros = jnp.zeros((1, 1, features))
  return encoder.init(key, zeros, jnp.ones((1, 1), bool), jnp.zeros((1, encoder.per_item, features)))["params"]


@struct.dataclass
class SoftTokenBatch:
  """P prompts in both forms, and a continuation of each.

  `prompts, prompt_mask [P, Lp]` with full histories; `short, short_mask [P, Ls]` with soft tokens, whose ids count the items of the batch
  (item h of prompt p is p * H + h, see `soft_token_ids`); `completions, completion_mask [P, Lc]`; `item_tokens, item_mask [P, H, T]` and
  `sid_tokens [P, H, levels]` of the items; `weights [P]` of the slates.
  """

  prompts: Any
  prompt_mask: Any
  short: Any
  short_mask: Any
  completions: Any
  completion_mask: Any
  item_tokens: Any
  item_mask: Any
  sid_tokens: Any
  weights: Any


def make_soft_token_loss(decoder: Decoder, encoder: SoftTokenEncoder, constraint: SlateConstraint | None = None) -> Loss:
  """Builds `loss(params, batch: SoftTokenBatch, frozen)`; `frozen` are the decoder's parameters, which get no gradient.

  It is the reverse KL in nats, mean over the completions' tokens, between the decoder's next-token distributions after the soft tokens and
  after the full history; with the `constraint` of the sampling both are over legal tokens. Metrics: `loss`, and `nll` of the completions
  after the soft tokens.
  """

  def loss_fn(params: Any, batch: SoftTokenBatch, frozen: Any) -> tuple[jax.Array, dict[str, Metric]]:
    items = [x.reshape(-1, x.shape[-1]) for x in (batch.item_tokens, batch.item_mask, batch.sid_tokens)]
    memory = encode_items(encoder, params, frozen["embedding"], *items)
    completions, mask = batch.completions[:, None], batch.completion_mask[:, None]
    full = completion_hidden(decoder, frozen, batch.prompts, batch.prompt_mask, completions, mask)
    short = completion_hidden(decoder, frozen | {"memory": memory}, batch.short, batch.short_mask, completions, mask)
    to_logits = make_to_logits(decoder, frozen, constraint)
    states = legal_states(batch.prompts, completions, mask, constraint)
    log_probs, _, kl = distillation_terms(to_logits, to_logits, short, jax.lax.stop_gradient(full), completions, *states)
    weights = mask * batch.weights[:, None, None]
    loss = Metric.of(kl, weights)
    return loss.mean(), {"loss": loss, "nll": Metric.of(-log_probs, weights)}

  return loss_fn
