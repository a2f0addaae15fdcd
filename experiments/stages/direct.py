"""Stage `direct`: the policy learns to answer without reasoning, by RL with the same reward or by one of its controls."""

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.stages.rl import train_policy
from gr2_jax.data.schema import DataError
from gr2_jax.data.slates import slate_labels
from gr2_jax.files import replacing
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import present
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import pad_shown, rank_slates, render_prompts
from gr2_jax.rollout.scoring import answer_opening
from gr2_jax.runs.artifacts import (
  direct_style,
  load_catalogue,
  load_context,
  load_log,
  load_policy,
  load_slates,
  make_decoder,
  most_new_tokens,
  prompt_style,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from gr2_jax.runs.slate_training import completion_batch, make_group_rollout, train_on_slates
from gr2_jax.steps.direct import make_answer_loss, make_distillation_loss, make_listwise_loss


def run(config, run, progress, stop):
  """Trains from the checkpoints of `direct.init` by `direct.method`; writes checkpoints."""
  options = config.direct
  catalogue = load_catalogue(run)
  context = load_context(run, catalogue, load_log(run, catalogue))
  slates = load_slates(run, catalogue, "train")
  method = {"rl": _by_reward, "sft": _by_answers, "distil": _by_own_reasoning, "scores": _by_labels}[options.method]
  method(run, make_decoder(run, context.vocabulary), slates, context, direct_style(run), progress, stop)


def _by_reward(run, decoder, slates, context, style, progress, stop):
  """The stage `rl` once more, on direct prompts; the limit of new tokens is what an answer takes, and none is overlong."""
  limit = most_new_tokens(run, slates, context.vocabulary, style)
  settings = {**run.config.rl.to_dict(), **run.config.direct.to_dict(), "max_new_tokens": limit, "overlong_zone": 0}
  init = stage_checkpoints(run, run.config.direct.init)
  train_policy(run, "direct", ConfigDict(settings), style, init, progress=progress, stop=stop)


def _by_answers(run, decoder, slates, context, style, progress, stop):
  """Off-policy: the answers that `init` gives after its reasoning, without the reasoning, under ever new presentations."""
  slates = slates[: run.config.direct.max_slates or None]
  rankings = _answers_after_reasoning(run, decoder, slates, context, progress, stop)
  valid = np.flatnonzero(rankings[:, 0] >= 0)
  if not len(valid):
    raise DataError(f"direct: {run.config.direct.init} gave no valid answer to learn from; train it longer")
  slates, rankings = [slates[i] for i in valid], rankings[valid]
  vocabulary, length = context.vocabulary, most_new_tokens(run, slates, context.vocabulary, style)

  def make_batch(params, step, drawn):
    indices, chosen, shown, prompts = drawn
    completions = np.full((len(chosen), 1, length), vocabulary.pad_id, np.int32)
    mask = np.zeros(completions.shape, np.int32)
    for row, (index, slate, order) in enumerate(zip(indices, chosen, shown, strict=True)):
      codes = context.codes[context.catalogue.to_rows(slate.candidates)]
      tokens = render_answer(rankings[index][: len(order)], order, None, vocabulary, style, codes).tokens
      completions[row, 0, : len(tokens)], mask[row, 0, : len(tokens)] = tokens, 1
    return completion_batch(prompts, completions, mask)

  _train(
    run, decoder, slates, context, style, make_answer_loss(decoder, slate_constraint(run, vocabulary, style)), make_batch, progress, stop
  )


def _by_own_reasoning(run, decoder, slates, context, style, progress, stop):
  """On-policy self-distillation: `init` reasons about a prompt, and after that reasoning scores the tokens that the student answered.

  One reasoning is drawn for all answers to a prompt in a step; over the steps the student sees the mean of what its teacher reasons.
  """
  options, reasoning_style, vocabulary = run.config.rl, prompt_style(run), context.vocabulary
  teacher = load_policy(run, run.config.direct.init, decoder)
  reason = make_group_rollout(run, decoder, context, reasoning_style, group=1, max_new_tokens=options.max_new_tokens)
  limit = most_new_tokens(run, slates, context.vocabulary, style)
  answer = make_group_rollout(run, decoder, context, style, group=options.group, max_new_tokens=limit)

  def make_batch(params, step, drawn):
    _, chosen, shown, prompts = drawn
    keys = jax.random.split(jax.random.fold_in(stage_key(run, "direct"), step))
    asked = render_prompts(chosen, shown, context, reasoning_style, length=prompts.tokens.shape[1])
    reasoned, answers = reason(teacher, asked, keys[0]), answer(params, prompts, keys[1])
    texts, mask, ended = append_reasoning(asked, reasoned.completions[:, 0], vocabulary)
    batch = completion_batch(prompts, answers.completions, answers.completion_mask & ended[:, None, None])
    return batch | {"teacher_prompts": texts, "teacher_mask": mask}

  loss_fn = make_distillation_loss(decoder, decoder, slate_constraint(run, vocabulary, style))
  _train(run, decoder, slates, context, style, loss_fn, make_batch, progress, stop, teacher=teacher)


def _by_labels(run, decoder, slates, context, style, progress, stop):
  """Listwise: the one-pass scores are trained as such, and nothing is decoded."""
  labels = slate_labels(slates)

  def make_batch(params, step, drawn):
    indices, _, shown, prompts = drawn
    by_slot = np.take_along_axis(labels[indices], pad_shown(shown, labels.shape[1]), axis=1)
    references = prompts.references[:, : labels.shape[1]]
    return {"prompts": prompts.tokens, "prompt_mask": prompts.mask, "references": references, "labels": by_slot}

  constraint = slate_constraint(run, context.vocabulary, style)
  loss_fn = make_listwise_loss(decoder, answer_opening(context.vocabulary, style), constraint)
  _train(run, decoder, slates, context, style, loss_fn, make_batch, progress, stop)


def _train(run, decoder, slates, context, style, loss_fn, make_batch, progress, stop, teacher=None):
  init = stage_checkpoints(run, run.config.direct.init)
  train_on_slates(run, "direct", decoder, init, slates, style, context, loss_fn, make_batch, teacher=teacher, progress=progress, stop=stop)


def _answers_after_reasoning(run, decoder, slates, context, progress, stop):
  """Greedy rankings `[n, K]` of `init`, kept in `RUN/direct/answers.npz`."""
  path = run.path("direct", "answers.npz")
  if path.exists():
    return np.load(path)["rankings"]
  options, style, vocabulary = run.config.rl, prompt_style(run), context.vocabulary
  shown = [present(len(s.candidates), options.presentation, (run.config.seed, i, 0)) for i, s in enumerate(slates)]
  generate = make_generate(
    decoder,
    group=1,
    max_new_tokens=options.max_new_tokens,
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    constraint=slate_constraint(run, vocabulary, style),
  )
  params, key = load_policy(run, run.config.direct.init, decoder), stage_key(run, "direct")
  with progress.task("direct: answers", len(slates), "slates") as task:

    def on_progress(done):
      task.update(done)
      stop.check()

    batch_size = options.prompts * options.group
    found = rank_slates(generate, params, slates, shown, context, style, batch_size=batch_size, key=key, on_progress=on_progress)
  if run.main:
    with replacing(path) as partial:
      np.savez(partial, rankings=found.rankings)
  return found.rankings


def append_reasoning(prompts, completions, vocabulary):
  """Prompts `[P, Lp]` with what completions `[P, Lc]` say before their answer: tokens, mask `[P, Lp + Lc]`, and whether one came `[P]`."""
  answering = completions == vocabulary.special("answer")
  lengths = np.where(answering.any(axis=1), answering.argmax(axis=1), 0)
  tokens = np.pad(prompts.tokens, ((0, 0), (0, completions.shape[1])), constant_values=vocabulary.pad_id)
  mask = np.pad(prompts.mask, ((0, 0), (0, completions.shape[1])))
  for row, (start, length) in enumerate(zip(prompts.mask.sum(axis=1), lengths, strict=True)):
    tokens[row, start : start + length] = completions[row, :length]
    mask[row, start : start + length] = 1
  return tokens, mask, answering.any(axis=1)
