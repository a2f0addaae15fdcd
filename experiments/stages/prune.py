"""Stage `prune`: the layers that change the hidden state least are dropped, and the full model teaches the rest on its own answers."""

import jax
import numpy as np

from gr2_jax.files import write_json
from gr2_jax.language.prompts import present
from gr2_jax.models.pruning import block_influence, choose_layers, prune_decoder, prune_params
from gr2_jax.rollout.rerank import render_prompts
from gr2_jax.runs.artifacts import (
  load_catalogue,
  load_context,
  load_log,
  load_policy,
  load_slates,
  make_decoder,
  most_new_tokens,
  pruned_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from gr2_jax.runs.slate_training import completion_batch, make_group_rollout, train_on_slates
from gr2_jax.steps.direct import make_distillation_loss
from gr2_jax.training.mesh import to_global


def run(config, run, progress, stop):
  """Writes `layers.json`, the parameters left in `pruned`, and with steps of recovery `checkpoints`."""
  options = config.prune
  catalogue = load_catalogue(run)
  context, style = load_context(run, catalogue, load_log(run, catalogue)), pruned_style(run)
  slates = load_slates(run, catalogue, "train")
  decoder = make_decoder(run, context.vocabulary)
  pruned = prune_decoder(decoder, options.layers)
  params = load_policy(run, options.init, decoder)
  init = stage_checkpoints(run, "prune", "pruned")
  if not init.steps():
    layers = _choose(run, decoder, params, slates, context, style)
    with init:
      init.save(0, {"params": prune_params(params, layers)}, {})
    progress.console.print(f"  layers kept: {', '.join(map(str, layers))} of {decoder.config.num_layers}", highlight=False)
  if options.steps:
    _recover(run, pruned, decoder, params, init, slates, context, style, progress, stop)


def _choose(run, decoder, params, slates, context, style):
  """Layers to keep, by their influence on prompts of training slates drawn by the run's seed; `layers.json` tells it of all."""
  options, rng = run.config.prune, np.random.default_rng(run.config.seed)
  mesh = run_mesh(run)
  rows = mesh.shape["data"] * mesh.shape["fsdp"]
  number = -(-min(options.slates, len(slates)) // rows) * rows
  chosen = [slates[i] for i in rng.choice(len(slates), number, replace=number > len(slates))]
  shown = [present(len(s.candidates), run.config.rl.presentation, (run.config.seed, i, 0)) for i, s in enumerate(chosen)]
  prompts = render_prompts(chosen, shown, context, style)
  tokens, mask = to_global((prompts.tokens, prompts.mask), mesh)
  with jax.set_mesh(mesh):
    changes, count = jax.jit(block_influence, static_argnums=0)(decoder, params, tokens, mask)
  influence = np.asarray(changes) / float(count)
  layers = choose_layers(influence, options.layers)
  if run.main:
    write_json(run.path("prune", "layers.json"), {"kept": layers, "influence": influence.tolist(), "slates": number, "tokens": int(count)})
  return layers


def _recover(run, pruned, decoder, teacher, init, slates, context, style, progress, stop):
  """On-policy distillation without a reward: the pruned policy answers, and the full one scores its tokens."""
  limit = most_new_tokens(run, slates, context.vocabulary, style)
  answer = make_group_rollout(run, pruned, context, style, group=run.config.rl.group, max_new_tokens=limit)

  def make_batch(params, step, drawn):
    prompts = drawn[3]
    answers = answer(params, prompts, jax.random.fold_in(stage_key(run, "prune"), step))
    batch = completion_batch(prompts, answers.completions, answers.completion_mask)
    return batch | {"teacher_prompts": prompts.tokens, "teacher_mask": prompts.mask}

  loss_fn = make_distillation_loss(pruned, decoder, slate_constraint(run, context.vocabulary, style))
  train_on_slates(run, "prune", pruned, init, slates, style, context, loss_fn, make_batch, teacher=teacher, progress=progress, stop=stop)
