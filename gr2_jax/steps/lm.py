"""The loss of every likelihood stage: mid-training (one part) and SFT on traces (reasoning and answer apart)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import parts_cross_entropy, token_log_probs
from gr2_jax.rollout.completions import make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.update import Loss
from gr2_jax.training.metric import Metric


def make_lm_loss(decoder: Decoder, parts: Mapping[str, float], constraint: SlateConstraint | None = None) -> Loss:
  """Builds `loss(params, batch)` for packed rows: Σ_p weight_p x mean nll of part p (GR2 Eq 3); `parts`: name -> weight.

  Batch, all `[B, T]`: int32 `tokens`, `positions`, `segment_ids` (0 = padding), `parts` (0 = not learnt, p = the p-th part); and where
  slates weigh differently float32 `weights`. With a `constraint` the log-probabilities of an answer's tokens are normalised over what the
  slate automaton allows, as in its sampling. Metrics: `loss`, and `nll_NAME` of each part.
  """
  names: Sequence[str] = tuple(parts)

  def loss_fn(params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, Metric]]:
    hidden, _ = decoder.apply({"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"])
    same = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    part_of = jnp.where(same, batch["parts"][:, 1:], 0)
    states: tuple = ()
    if constraint is not None:
      replayed = constraint.replay(batch["tokens"], batch["parts"] > 0, batch["segment_ids"])
      states = (jax.tree.map(lambda x: x[:, 1:], replayed),)
    to_logits = make_to_logits(decoder, params, constraint)
    log_probs, _ = token_log_probs(to_logits, hidden[:, :-1], batch["tokens"][:, 1:], *states)
    weights = batch["weights"][:, 1:] if "weights" in batch else None
    loss, terms = parts_cross_entropy(log_probs, part_of, tuple(parts.values()), weights)
    metrics = {f"nll_{name}": Metric(total, count) for name, (total, count) in zip(names, terms, strict=True)}
    return loss, metrics | {"loss": Metric(loss, jnp.ones(()))}

  return loss_fn
