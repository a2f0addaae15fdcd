"""Losses that teach a policy to answer, other than RL's: on given answers, from a teacher's words on its own answers, or by scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gr2_jax.models.transformer import Decoder
from gr2_jax.objectives.listwise import listwise_cross_entropy
from gr2_jax.objectives.token_loss import distillation_terms
from gr2_jax.rollout.completions import completion_hidden, completion_log_probs, legal_states, make_to_logits
from gr2_jax.rollout.scoring import score_candidates
from gr2_jax.rollout.slate_constraint import SlateConstraint
from gr2_jax.steps.update import Loss
from gr2_jax.training.metric import Metric

Batch = Mapping[str, jax.Array]


def make_answer_loss(decoder: Decoder, constraint: SlateConstraint | None) -> Loss:
  """Mean negative log-likelihood of the tokens of given answers: SFT without reasoning.

  Batch: `prompts, prompt_mask [P, Lp]` of a direct style; `completions, completion_mask [P, G, Lc]`, Lc being the limit under which they
  were sampled; `weights [P]` of their slates. With the rollout's `constraint` probabilities are over the legal tokens, here and below.
  """

  def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Metric]]:
    log_probs, entropy = completion_log_probs(decoder, params, *_texts(batch), constraint=constraint)
    return _mean({"loss": -log_probs, "entropy": entropy}, _token_weights(batch))

  return loss_fn


def make_distillation_loss(decoder: Decoder, teacher: Decoder, constraint: SlateConstraint | None) -> Loss:
  """Mean reverse KL[student || teacher] over the tokens of the student's completions, each in the context of its own prompt.

  Batch: that of `make_answer_loss`, the completions being samples of the student, and `teacher_prompts, teacher_mask [P, Lt]`, after
  which the teacher reads the same completions. A teacher that has reasoned there teaches a student that has not.
  """

  def loss_fn(params: Any, batch: Batch, teacher_params: Any) -> tuple[jax.Array, dict[str, Metric]]:
    hidden = completion_hidden(decoder, params, *_texts(batch))
    teacher_texts = batch["teacher_prompts"], batch["teacher_mask"], batch["completions"], batch["completion_mask"]
    teacher_hidden = completion_hidden(teacher, teacher_params, *teacher_texts)
    states = legal_states(batch["prompts"], batch["completions"], batch["completion_mask"], constraint)
    to_logits, teacher_logits = make_to_logits(decoder, params, constraint), make_to_logits(teacher, teacher_params, constraint)
    log_probs, entropy, kl = distillation_terms(to_logits, teacher_logits, hidden, teacher_hidden, batch["completions"], *states)
    return _mean({"loss": kl, "entropy": entropy, "nll": -log_probs}, _token_weights(batch))

  return loss_fn


def make_listwise_loss(decoder: Decoder, opening: Sequence[int], constraint: SlateConstraint | None) -> Loss:
  """Listwise cross-entropy of one-pass scores on labels, mean over slates with a positive: the ranking loss of FIRST.

  Batch: `prompts, prompt_mask [P, Lp]`; `references [P, K, L]` and `labels [P, K]` by slot, -1 where there is no candidate; `weights [P]`.
  """

  def loss_fn(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Metric]]:
    scores = score_candidates(
      decoder, params, batch["prompts"], batch["prompt_mask"], batch["references"], opening=opening, constraint=constraint
    )
    losses, counted = listwise_cross_entropy(scores, batch["labels"], batch["labels"] >= 0)
    best = jnp.take_along_axis(batch["labels"], scores.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return _mean({"loss": losses, "recall@1": (best > 0).astype(jnp.float32)}, counted * batch["weights"])

  return loss_fn


def _texts(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  return batch["prompts"], batch["prompt_mask"], batch["completions"], batch["completion_mask"]


def _token_weights(batch: Batch) -> jax.Array:
  return batch["completion_mask"] * batch["weights"][:, None, None]


def _mean(values: Mapping[str, jax.Array], weights: jax.Array) -> tuple[jax.Array, dict[str, Metric]]:
  metrics = {name: Metric.of(of, weights) for name, of in values.items()}
  return metrics["loss"].mean(), metrics
