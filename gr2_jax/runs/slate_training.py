"""Training on slates: which are drawn and how they are shown, what policies answer, and the losses other than RL's."""

import jax
import numpy as np

from gr2_jax.runs.artifacts import run_mesh, slate_constraint
from gr2_jax.runs.training import begin, train
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.language.prompts import present
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.direct import make_direct_update
from gr2_jax.training.mesh import jit_update, to_global, to_local


def draw_slates(run, slates, number):
  """Batches of `number` training slates: the index of each, and a number drawn for its presentation."""
  return make_pipeline(
    range(len(slates)),
    seed=run.config.seed,
    batch_size=number,
    map_fn=lambda index, rng: {"slate": np.int32(index), "draw": rng.integers(2**31, dtype=np.int64)},
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def make_next_prompts(run, presentation, slates, context, style, position):
  """Builds `next_prompts()`: indices of the slates drawn, the slates, how each is shown, and their prompts, all of one length."""
  # One length for all: an order of candidates changes none, so nothing is compiled later.
  in_order = [np.arange(len(slate.candidates)) for slate in slates]
  length = render_prompts(slates, in_order, context, style).tokens.shape[1]

  def next_prompts():
    drawn = next(position)
    chosen = [slates[i] for i in drawn["slate"]]
    shown = [
      present(len(s.candidates), presentation, (run.config.seed, int(i), int(d)))
      for s, i, d in zip(chosen, drawn["slate"], drawn["draw"], strict=True)
    ]
    return drawn["slate"], chosen, shown, render_prompts(chosen, shown, context, style, length=length)

  return next_prompts


def make_group_rollout(run, decoder, context, style, *, group, max_new_tokens):
  """Builds `roll_out(params, PromptBatch, key) -> Rollout`, on the host, of this process's prompts; sampled as in `rl`."""
  mesh, sampling = run_mesh(run), Sampling.create(run.config.rl.temperature)
  generate = make_generate(
    decoder,
    group=group,
    max_new_tokens=max_new_tokens,
    eos_id=context.vocabulary.eos_id,
    pad_id=context.vocabulary.pad_id,
    constraint=slate_constraint(run, context.vocabulary, style),
  )

  def roll_out(params, prompts, key):
    tokens, mask, references = to_global((prompts.tokens, prompts.mask, prompts.references), mesh)
    with jax.set_mesh(mesh):
      return to_local(generate(params, tokens, mask, key, sampling, None, references), mesh)

  return roll_out


def train_on_slates(run, stage, decoder, init, slates, style, context, loss_fn, make_batch, *, teacher=None, progress, stop):
  """Trains `decoder` from the parameters in `init` by `loss_fn` (see `steps.direct`); checkpoints of `stage`.

  `make_batch(params, step, drawn)`: what the loss reads of slates drawn by `make_next_prompts`. `teacher`: the frozen parameters of a
  loss that has a teacher.
  """
  options, mesh = run.config[stage], run_mesh(run)
  optimizer, state, shardings = begin(decoder, options, mesh, None, init)
  update = jit_update(make_direct_update(optimizer, loss_fn), mesh, shardings, frozen=() if teacher is None else (teacher,))
  position = draw_slates(run, slates, options.prompts)
  next_prompts = make_next_prompts(run, run.config.rl.presentation, slates, context, style, position)
  train(
    run,
    stage,
    state,
    update,
    lambda state: (make_batch(state.params, int(state.step), next_prompts()), {}),
    position=position,
    options=options,
    progress=progress,
    stop=stop,
    headline=("loss", "entropy", "recall@1"),
  )


def completion_batch(prompts, completions, mask):
  """The batch of likelihood losses: `prompts, prompt_mask [P, Lp]`, `completions, completion_mask [P, G, Lc]`."""
  return {"prompts": prompts.tokens, "prompt_mask": prompts.mask, "completions": completions, "completion_mask": mask}
