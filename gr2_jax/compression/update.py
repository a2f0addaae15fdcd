"""The update of the slot encoder: the frozen ranker should go on from slots as it does from the full history."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from gr2_jax.compression.encoder import SlotEncoder, encode_items
from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import distillation_terms
from gr2_jax.rollout.scoring import completion_hidden, legal_states, make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState


@struct.dataclass
class SlotBatch:
  """P prompts in both forms, and a continuation of each.

  `prompts, prompt_mask [P, Lp]` with full histories; `short, short_mask [P, Ls]` with slots, whose ids count the items of the batch
  (item h of prompt p is p * H + h, see `slot_ids`); `completions, completion_mask [P, Lc]`; `item_tokens, item_mask [P, H, T]` and
  `sid_tokens [P, H, levels]` of the items.
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


def make_slot_update(
  decoder: Decoder,
  encoder: SlotEncoder,
  optimizer: optax.GradientTransformation,
  constraint: SlateConstraint | None = None,
) -> Callable:
  """Builds `update(state, batch: SlotBatch, frozen) -> (state, metrics)`; `frozen` are the decoder's parameters, which get no gradient.

  The loss is the reverse KL in nats, mean over the completions' tokens, between the decoder's next-token distributions after the slots
  and after the full history; with the `constraint` of the sampling both are over legal tokens. Metrics: `loss`, `nll` of the
  completions after the slots, `grad_norm`, `skipped`.
  """

  def loss_fn(params, batch: SlotBatch, frozen):
    items = [x.reshape(-1, x.shape[-1]) for x in (batch.item_tokens, batch.item_mask, batch.sid_tokens)]
    memory = encode_items(encoder, params, frozen["embedding"], *items)
    completions, mask = batch.completions[:, None], batch.completion_mask[:, None]
    full = completion_hidden(decoder, frozen, batch.prompts, batch.prompt_mask, completions, mask)
    short = completion_hidden(decoder, frozen | {"memory": memory}, batch.short, batch.short_mask, completions, mask)
    to_logits = make_to_logits(decoder, frozen, constraint)
    states = legal_states(batch.prompts, completions, mask, constraint)
    log_probs, _, kl = distillation_terms(to_logits, to_logits, short, jax.lax.stop_gradient(full), completions, *states)
    loss = Metric.of(kl, mask)
    return loss.mean(), {"loss": loss, "nll": Metric.of(-log_probs, mask)}

  def update(state: TrainState, batch: SlotBatch, frozen):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, frozen)
    metrics["grad_norm"] = Metric(optax.global_norm(grads), jnp.ones(()))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), opt_state)
    (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), new, metrics)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update
