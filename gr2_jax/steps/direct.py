"""Updates that teach a policy to answer without reasoning, other than RL: on given answers, from its own reasoning, or by scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.objectives.token_loss import distillation_terms, token_log_probs
from gr2_jax.rollout.scoring import completion_hidden, legal_states, make_to_logits, score_candidates
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.training.guard import skip_if_not_finite
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import TrainState

Loss = Callable[[Any, Mapping[str, jax.Array], Any], tuple[jax.Array, dict[str, Metric]]]


def make_direct_update(optimizer: optax.GradientTransformation, loss_fn: Loss) -> Callable:
  """Builds `update(state, batch, teacher_params=None) -> (state, metrics)`: a gradient step of one of the losses below."""

  def update(state: TrainState, batch, teacher_params=None):
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, teacher_params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = metrics | {"grad_norm": Metric(optax.global_norm(grads), jnp.ones(()))}
    new = optax.apply_updates(state.params, updates), opt_state
    (params, opt_state), metrics = skip_if_not_finite((state.params, state.opt_state), new, metrics)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update


def make_answer_loss(decoder: Decoder, constraint: SlateConstraint | None) -> Loss:
  """Mean negative log-likelihood of the tokens of given answers: SFT without reasoning.

  Batch: `prompts, prompt_mask [P, Lp]` of a direct style; `completions, completion_mask [P, G, Lc]`, Lc being the limit under which they
  were sampled. With the `constraint` of the rollout, probabilities are over the legal tokens, here and below.
  """

  def loss_fn(params, batch, _):
    hidden = completion_hidden(decoder, params, *_texts(batch))
    states = legal_states(batch["prompts"], batch["completions"], batch["completion_mask"], constraint)
    to_logits = make_to_logits(decoder, params, constraint)
    log_probs, entropy = token_log_probs(to_logits, hidden, batch["completions"], *states)
    return _mean({"loss": -log_probs, "entropy": entropy}, batch["completion_mask"])

  return loss_fn


def make_distillation_loss(decoder: Decoder, teacher: Decoder, constraint: SlateConstraint | None) -> Loss:
  """Mean reverse KL[student || teacher] over the tokens of the student's completions, each in the context of its own prompt.

  Batch: that of `make_answer_loss`, the completions being samples of the student, and `teacher_prompts, teacher_mask [P, Lt]`, after
  which the teacher reads the same completions. A teacher that has reasoned there teaches a student that has not.
  """

  def loss_fn(params, batch, teacher_params):
    hidden = completion_hidden(decoder, params, *_texts(batch))
    teacher_texts = batch["teacher_prompts"], batch["teacher_mask"], batch["completions"], batch["completion_mask"]
    teacher_hidden = completion_hidden(teacher, teacher_params, *teacher_texts)
    states = legal_states(batch["prompts"], batch["completions"], batch["completion_mask"], constraint)
    to_logits, teacher_logits = make_to_logits(decoder, params, constraint), make_to_logits(teacher, teacher_params, constraint)
    log_probs, entropy, kl = distillation_terms(to_logits, teacher_logits, hidden, teacher_hidden, batch["completions"], *states)
    return _mean({"loss": kl, "entropy": entropy, "nll": -log_probs}, batch["completion_mask"])

  return loss_fn


def make_listwise_loss(decoder: Decoder, opening: Sequence[int], constraint: SlateConstraint | None) -> Loss:
  """Listwise cross-entropy of one-pass scores on labels, mean over slates with a positive: the ranking loss of FIRST.

  Batch: `prompts, prompt_mask [P, Lp]`; `references [P, K, L]` and `labels [P, K]` by slot, -1 where there is no candidate.
  """

  def loss_fn(params, batch, _):
    scores = score_candidates(
      decoder, params, batch["prompts"], batch["prompt_mask"], batch["references"], opening=opening, constraint=constraint
    )
    losses, counted = listwise_cross_entropy(scores, batch["labels"], batch["labels"] >= 0)
    best = jnp.take_along_axis(batch["labels"], scores.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return _mean({"loss": losses, "recall@1": (best > 0).astype(jnp.float32)}, counted)

  return loss_fn


def _texts(batch):
  return batch["prompts"], batch["prompt_mask"], batch["completions"], batch["completion_mask"]


def _mean(values, mask):
  metrics = {name: Metric.of(of, mask) for name, of in values.items()}
  loss = metrics["loss"]
  return loss.sum / jnp.maximum(loss.count, 1), metrics
