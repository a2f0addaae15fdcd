"""Stage `direct`: the policy learns to answer without reasoning, by RL with the same reward or by one of its controls."""

import os

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.artifacts import (
  direct_style,
  load_catalogue,
  load_context,
  load_log,
  load_policy,
  load_slates,
  make_decoder,
  prompt_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from experiments.stages.rl import draw_slates, make_next_prompts, train_policy
from experiments.train import begin, train
from gr2_jax.data.schema import DataError
from gr2_jax.evaluation.features import slate_labels
from gr2_jax.language.answers import direct_answer_length, render_answer
from gr2_jax.language.prompts import present
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import pad_shown, rank_slates, render_prompts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.rollout.scoring import answer_opening
from gr2_jax.steps.direct import make_answer_loss, make_direct_update, make_listwise_loss, make_self_distillation_loss
from gr2_jax.training.mesh import jit_update, to_global, to_local


def run(config, run, progress, stop):
  """Trains from the checkpoints of `direct.init` by `direct.method`; writes checkpoints. Nothing without steps."""
  options = config.direct
  if not options.steps:
    return
  if options.method == "rl":
    _train_by_reward(run, progress, stop)
  else:
    _train_by_loss(run, {"sft": _answers, "distil": _self_distillation, "scores": _scores}[options.method], progress, stop)


def _train_by_reward(run, progress, stop):
  """The stage `rl` once more, on direct prompts; the limit of new tokens is what an answer takes, and none is overlong."""
  catalogue = load_catalogue(run)
  context = load_context(run, catalogue, load_log(run, catalogue))
  limit = _answer_length(load_slates(run, catalogue, "train"), context, direct_style(run))
  settings = {**run.config.rl.to_dict(), **run.config.direct.to_dict(), "max_new_tokens": limit, "overlong_zone": 0}
  init = stage_checkpoints(run, run.config.direct.init)
  train_policy(run, "direct", ConfigDict(settings), direct_style(run), init, progress=progress, stop=stop)


def _answer_length(slates, context, style):
  return direct_answer_length(max(len(slate.candidates) for slate in slates), context.vocabulary, style)


def _train_by_loss(run, method, progress, stop):
  """A likelihood or listwise loss: `method` gives the slates, the loss, `get_batch`, and the teacher's parameters or None."""
  options, style = run.config.direct, direct_style(run)
  catalogue = load_catalogue(run)
  context = load_context(run, catalogue, load_log(run, catalogue))
  decoder, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  slates, loss_fn, make_get_batch, teacher = method(run, decoder, mesh, context, style, progress, stop)
  optimizer, state, shardings = begin(decoder, options, mesh, None, stage_checkpoints(run, options.init))
  others = () if teacher is None else (shardings.params,)
  update = jit_update(make_direct_update(optimizer, loss_fn), mesh, shardings, *others)
  position = draw_slates(run, slates, options.prompts)
  get_batch = make_get_batch(make_next_prompts(run, run.config.rl.presentation, slates, context, style, position))
  teachers = () if teacher is None else (teacher,)
  train(
    run,
    "direct",
    state,
    lambda state, batch: update(state, batch, *teachers),
    get_batch,
    position=position,
    options=options,
    progress=progress,
    stop=stop,
    headline=("loss", "entropy", "recall@1"),
  )


# The methods: each returns (slates, loss_fn, make_get_batch(next_prompts) -> get_batch(state), teacher parameters or None).


def _answers(run, decoder, mesh, context, style, progress, stop):
  """Off-policy: the answers that `init` gives after its reasoning, without the reasoning, under ever new presentations."""
  slates = load_slates(run, context.catalogue, "train")[: run.config.direct.max_slates or None]
  rankings = _answers_after_reasoning(run, decoder, context, slates, progress, stop)
  valid = np.flatnonzero(rankings[:, 0] >= 0)
  if not len(valid):
    raise DataError(f"direct: {run.config.direct.init} gave no valid answer to learn from; train it longer")
  slates, rankings = [slates[i] for i in valid], rankings[valid]
  vocabulary, length = context.vocabulary, _answer_length(slates, context, style)

  def make_get_batch(next_prompts):
    def get_batch(state):
      indices, chosen, shown, prompts = next_prompts()
      completions = np.full((len(chosen), 1, length), vocabulary.pad_id, np.int32)
      mask = np.zeros(completions.shape, np.int32)
      for row, (index, slate, order) in enumerate(zip(indices, chosen, shown, strict=True)):
        codes = context.codes[context.catalogue.to_rows(slate.candidates)]
        tokens = render_answer(rankings[index][: len(order)], order, None, vocabulary, style, codes).tokens
        completions[row, 0, : len(tokens)], mask[row, 0, : len(tokens)] = tokens, 1
      return _batch(prompts, completions, mask), {}

    return get_batch

  return slates, make_answer_loss(decoder, slate_constraint(run, vocabulary, style)), make_get_batch, None


def _answers_after_reasoning(run, decoder, context, slates, progress, stop):
  """Greedy rankings `[n, K]` of `init`, kept in `RUN/direct/answers.npz`."""
  path = run.path("direct", "answers.npz")
  if path.exists():
    return np.load(path)["rankings"]
  options, style = run.config.rl, prompt_style(run)
  shown = [present(len(s.candidates), options.presentation, (run.config.seed, i, 0)) for i, s in enumerate(slates)]
  with progress.task("direct: answers", len(slates), "slates") as task:

    def on_progress(done):
      task.update(done)
      stop.check()

    found = rank_slates(
      _make_generate(run, decoder, context, style, 1, options.max_new_tokens),
      load_policy(run, run.config.direct.init, decoder),
      slates,
      shown,
      context,
      style,
      batch_size=options.prompts * options.group,
      key=stage_key(run, "direct"),
      on_progress=on_progress,
    )
  if run.main:
    partial = path.with_name(".answers.partial.npz")
    np.savez(partial, rankings=found.rankings)
    os.replace(partial, path)
  return found.rankings


def _self_distillation(run, decoder, mesh, context, style, progress, stop):
  """On-policy: the student answers, and `init` scores each answer's tokens after a reasoning of its own about the same prompt."""
  options, reasoning_style, vocabulary = run.config.rl, prompt_style(run), context.vocabulary
  slates = load_slates(run, context.catalogue, "train")
  teacher = load_policy(run, run.config.direct.init, decoder)
  reason = _make_generate(run, decoder, context, reasoning_style, 1, options.max_new_tokens)
  answer = _make_generate(run, decoder, context, style, options.group, _answer_length(slates, context, style))
  sampling = Sampling.create(options.temperature)

  def make_get_batch(next_prompts):
    def get_batch(state):
      _, chosen, shown, prompts = next_prompts()
      asked = render_prompts(chosen, shown, context, reasoning_style, length=prompts.tokens.shape[1])
      keys = jax.random.split(jax.random.fold_in(stage_key(run, "direct"), int(state.step)))

      def roll_out(generate, params, batch, key):
        tokens, mask, references = to_global((batch.tokens, batch.mask, batch.references), mesh)
        with jax.set_mesh(mesh):
          return to_local(generate(params, tokens, mask, key, sampling, None, references), mesh)

      reasoned, answers = roll_out(reason, teacher, asked, keys[0]), roll_out(answer, state.params, prompts, keys[1])
      texts, mask, reasoned_to_end = append_reasoning(asked, reasoned.completions[:, 0], vocabulary)
      batch = _batch(prompts, answers.completions, answers.completion_mask & reasoned_to_end[:, None, None])
      return batch | {"teacher_prompts": texts, "teacher_mask": mask}, {}

    return get_batch

  return slates, make_self_distillation_loss(decoder, slate_constraint(run, vocabulary, style)), make_get_batch, teacher


def append_reasoning(prompts, completions, vocabulary):
  """Prompts `[P, Lp]` with what completions `[P, Lc]` say before their answer; returns tokens, mask `[P, Lp + Lc]`, and `[P]` whether an
  answer came at all.
  """
  answering = completions == vocabulary.special("answer")
  lengths = np.where(answering.any(axis=1), answering.argmax(axis=1), 0)
  tokens = np.pad(prompts.tokens, ((0, 0), (0, completions.shape[1])), constant_values=vocabulary.pad_id)
  mask = np.pad(prompts.mask, ((0, 0), (0, completions.shape[1])))
  for row, (start, length) in enumerate(zip(prompts.mask.sum(axis=1), lengths, strict=True)):
    tokens[row, start : start + length] = completions[row, :length]
    mask[row, start : start + length] = 1
  return tokens, mask, answering.any(axis=1)


def _scores(run, decoder, mesh, context, style, progress, stop):
  """Listwise on labels: the one-pass scores are trained as such, and nothing is decoded."""
  slates = load_slates(run, context.catalogue, "train")
  labels = slate_labels(slates)

  def make_get_batch(next_prompts):
    def get_batch(state):
      indices, _, shown, prompts = next_prompts()
      by_slot = np.take_along_axis(labels[indices], pad_shown(shown, labels.shape[1]), axis=1)
      references = prompts.references[:, : labels.shape[1]]
      return {"prompts": prompts.tokens, "prompt_mask": prompts.mask, "references": references, "labels": by_slot}, {}

    return get_batch

  opening, constraint = answer_opening(context.vocabulary, style), slate_constraint(run, context.vocabulary, style)
  return slates, make_listwise_loss(decoder, opening, constraint), make_get_batch, None


def _make_generate(run, decoder, context, style, group, limit):
  return make_generate(
    decoder,
    group=group,
    max_new_tokens=limit,
    eos_id=context.vocabulary.eos_id,
    pad_id=context.vocabulary.pad_id,
    constraint=slate_constraint(run, context.vocabulary, style),
  )


def _batch(prompts, completions, mask):
  return {"prompts": prompts.tokens, "prompt_mask": prompts.mask, "completions": completions, "completion_mask": mask}
