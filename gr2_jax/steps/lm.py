"""The update of every likelihood stage: mid-training (one part) and SFT on traces (reasoning and answer apart)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.token_loss import parts_cross_entropy, token_log_probs
from gr2_jax.rollout.scoring import make_to_logits
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState


def make_lm_update(
  decoder: Decoder,
  optimizer: optax.GradientTransformation,
  *,
  part_names: Sequence[str],
  part_weights: Sequence[float],
  new_rows_from: int | None = None,
  constraint: SlateConstraint | None = None,
) -> Callable:
  """Builds `update(state, batch) -> (state, metrics)` for packed rows.

  Batch, all `[B, T]` int32: `tokens`, `positions`, `segment_ids` (0 = padding), `parts` (0 = not learnt, p = part p).
  The loss is Σ_p weight_p x mean nll of part p (GR2 Eq 3). With `new_rows_from` only rows of the embedding table from
  that id on move: the token warm-up stage, in which the backbone must not follow rows that are still noise. With a `constraint` the
  log-probabilities of an answer's tokens are normalised over what the slate automaton allows, as in its sampling.
  """

  def loss_fn(params, batch):
    hidden, _ = decoder.apply({"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"])
    same = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    parts = jnp.where(same, batch["parts"][:, 1:], 0)
    extra = ()
    if constraint is not None:
      states = constraint.replay(batch["tokens"], batch["parts"] > 0, batch["segment_ids"])
      extra = (jax.tree.map(lambda x: x[:, 1:], states),)
    to_logits = make_to_logits(decoder, params, constraint)
    log_probs, _ = token_log_probs(to_logits, hidden[:, :-1], batch["tokens"][:, 1:], *extra)
    return parts_cross_entropy(log_probs, parts, part_weights)

  def update(state: TrainState, batch):
    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if new_rows_from is not None:
      updates = _only_new_rows(updates, new_rows_from)
    params = optax.apply_updates(state.params, updates)
    one = jnp.ones(())
    metrics = {"loss": Metric(loss, one), "grad_norm": Metric(optax.global_norm(grads), one)}
    for name, (total, count) in zip(part_names, terms, strict=True):
      metrics[f"nll_{name}"] = Metric(total, count)
    (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), (params, opt_state), metrics)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update


def _only_new_rows(updates, first: int):
  """Zero everywhere but in the rows from `first` on of the token tables (input, and output where it is untied)."""
  tables = {name: updates[name] for name in ("embedding", "output") if name in updates}
  kept = {name: jnp.where((jnp.arange(rows.shape[0]) >= first)[:, None], rows, 0) for name, rows in tables.items()}
  return jax.tree.map(jnp.zeros_like, updates) | kept
