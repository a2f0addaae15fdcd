"""Stage `rl`: group rollouts on training slates, verifiable rewards, policy updates; the hacking monitors run at every step."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.artifacts import (
  load_catalogue,
  load_context,
  load_log,
  load_slates,
  make_decoder,
  prompt_style,
  run_mesh,
  slate_constraint,
  stage_checkpoints,
  stage_key,
)
from experiments.train import begin, train
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.evaluation.features import slate_labels
from gr2_jax.language.prompts import present
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.parse import parse_completions
from gr2_jax.rollout.rerank import pad_shown, render_prompts
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.steps.rl import Judgement, RlConfig, collect_groups, make_rl_update
from gr2_jax.training.mesh import jit_update, to_global, to_local
from gr2_jax.training.metric import merge

# Of the thirty metrics a step that are written, what a bar has room for.
HEADLINE = ("reward", "recall@1", "valid_rate", "near_identity_rate", "kept_fraction", "completion_length", "entropy")


def run(config, run, progress, stop):
  """Trains the SFT policy; writes checkpoints."""
  options = config.rl
  catalogue = load_catalogue(run)
  context, style = load_context(run, catalogue, load_log(run, catalogue)), prompt_style(run)
  slates = load_slates(run, catalogue, "train")
  decoder, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  optimizer, state, shardings = begin(decoder, options, mesh, None, stage_checkpoints(run, "sft"))
  loss = PolicyLossConfig(**options.loss)
  rl_config = RlConfig(loss, options.temperature, options.minibatches, options.microbatches, options.packed_rows)
  constraint = slate_constraint(run, context.vocabulary)
  update = jit_update(make_rl_update(decoder, optimizer, rl_config, constraint), mesh, shardings)
  position = make_pipeline(
    range(len(slates)),
    seed=config.seed,
    batch_size=options.prompts,
    map_fn=lambda index, rng: {"slate": np.int32(index), "draw": rng.integers(2**31, dtype=np.int64)},
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  get_batch = _make_get_batch(run, slates, decoder, mesh, context, style, position, constraint, loss)
  train(run, "rl", state, update, get_batch, position=position, options=options, progress=progress, stop=stop, headline=HEADLINE)


def _make_get_batch(run, slates, decoder, mesh, context, style, position, constraint, loss):
  """Builds `get_batch(state)`: rounds of prompts, rollouts and rewards until the batch is full of groups that carry a signal."""
  options, vocabulary = run.config.rl, context.vocabulary
  generate = make_generate(
    decoder,
    group=options.group,
    max_new_tokens=options.max_new_tokens,
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    constraint=constraint,
  )
  sampling = Sampling.create(options.temperature)
  judge = _make_judge(options)
  labels = slate_labels(slates)
  width = labels.shape[1]
  # One length for all prompts: an order of candidates changes none, so nothing is compiled later.
  in_order = [np.arange(len(slate.candidates)) for slate in slates]
  length = render_prompts(slates, in_order, context, style).tokens.shape[1]

  def next_prompts():
    drawn = next(position)
    chosen = [slates[i] for i in drawn["slate"]]
    shown = [
      present(len(s.candidates), options.presentation, (run.config.seed, int(i), int(d)))
      for s, i, d in zip(chosen, drawn["slate"], drawn["draw"], strict=True)
    ]
    return drawn["slate"], chosen, shown, render_prompts(chosen, shown, context, style, length=length)

  def get_batch(state):
    step_key = jax.random.fold_in(stage_key(run, "rl"), int(state.step))
    monitors = []

    def rollout_fn(prompts):
      key = jax.random.fold_in(step_key, len(monitors))
      batch = prompts[3]
      tokens, mask, references = to_global((batch.tokens, batch.mask, batch.references), mesh)
      with jax.set_mesh(mesh):
        return to_local(generate(state.params, tokens, mask, key, sampling, None, references), mesh)

    def judge_fn(prompts, rollout):
      indices, chosen, shown, batch = prompts
      shown = pad_shown(shown, width)
      answers = parse_completions(rollout.completions, batch.references, shown, chosen, context, style)
      judgement, found = judge(answers, labels[indices], shown, rollout.completion_mask)
      monitors.append(found)
      return judgement

    batch, metrics = collect_groups(
      next_prompts,
      rollout_fn,
      judge_fn,
      num_prompts=options.prompts // jax.process_count(),
      max_rounds=options.max_rounds,
      min_filled=options.min_filled,
      dynamic_sampling=options.dynamic_sampling,
      loss=loss,
    )
    return batch, merge(monitors) | metrics

  return get_batch


def _make_judge(options):
  """Builds the compiled `judge(ParsedAnswers, labels, shown, completion_mask) -> (Judgement, monitors)`."""
  reward_config = RewardConfig(**options.reward)

  @jax.jit
  def judge(answers, labels, shown, completion_mask):
    rewards = compute_rewards(reward_config, answers.rankings, labels, shown, mask=labels >= 0)
    lengths = jnp.sum(completion_mask, axis=-1)
    shaped = rewards.total + soft_overlong_penalty(lengths, options.max_new_tokens, options.overlong_zone)
    monitors = monitor_answers(rewards, answers.rankings, shown, lengths) | monitor_errors(answers.codes)
    return Judgement(shaped, rewards.rank_raw, rewards.format > 0), monitors

  return judge
