"""Stage `rl`: group rollouts on training slates, verifiable rewards, policy updates; the hacking monitors run at every step."""

import functools

import jax
import jax.numpy as jnp

from gr2_jax.data.slates import slate_labels
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rewards.monitors import monitor_answers, monitor_errors
from gr2_jax.rewards.overlong import soft_overlong_penalty
from gr2_jax.rewards.verifiable import RewardConfig, compute_rewards
from gr2_jax.rollout.parse import parse_compact, parse_completions
from gr2_jax.rollout.refill import make_generate_queue
from gr2_jax.rollout.rerank import pad_shown
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.artifacts import (
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
from gr2_jax.runs.slate_training import draw_slates, make_next_prompts
from gr2_jax.runs.training import begin, train
from gr2_jax.steps.rl import Judgement, RlConfig, SilenceCounter, collect_groups, make_rl_update
from gr2_jax.training.mesh import jit_update, to_global, to_local
from gr2_jax.training.metric import merge

# Of the thirty metrics a step that are written, what a bar has room for.
HEADLINE = ("reward", "recall@1", "valid_rate", "near_identity_rate", "kept_fraction", "completion_length", "entropy")


def run(config, run, progress, stop):
  """Trains the policy of the stage `rl.init`; writes checkpoints."""
  init = stage_checkpoints(run, config.rl.init)
  train_policy(run, "rl", config.rl, prompt_style(run), init, progress=progress, stop=stop)


def train_policy(run, stage, options, style, init, *, progress, stop):
  """Reinforcement learning with the settings `options` on prompts of `style`, from the parameters in `init`; checkpoints of `stage`."""
  catalogue = load_catalogue(run)
  context = load_context(run, catalogue, load_log(run, catalogue))
  slates = load_slates(run, catalogue, "train")
  decoder, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  optimizer, state, shardings = begin(decoder, options, mesh, None, init)
  loss = PolicyLossConfig(**options.loss)
  rl_config = RlConfig(loss, options.temperature, options.minibatches, options.microbatches, options.packed_rows)
  constraint = slate_constraint(run, context.vocabulary, style)
  update = jit_update(make_rl_update(decoder, optimizer, rl_config, constraint), mesh, shardings)
  position = draw_slates(run, slates, options.prompts)
  get_batch = make_get_batch(run, stage, options, slates, decoder, mesh, context, style, position, constraint, loss)
  get_batch = stop_without_signal(get_batch, options.max_skips)
  train(run, stage, state, update, get_batch, position=position, options=options, progress=progress, stop=stop, headline=HEADLINE)


def make_get_batch(run, stage, options, slates, decoder, mesh, context, style, position, constraint, loss):
  """Builds `get_batch(state)`: rounds of prompts, rollouts and rewards until the batch is full of groups that carry a signal."""
  vocabulary = context.vocabulary
  generate = make_generate_queue(
    decoder,
    slots=options.slots,
    rows=options.rows,
    group=options.group,
    max_new_tokens=options.max_new_tokens,
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    constraint=constraint,
  )
  sampling = Sampling.create(options.temperature)
  judge = _make_judge(options, loss)
  labels = slate_labels(slates)
  width = labels.shape[1]
  next_prompts = make_next_prompts(run, options.presentation, slates, context, style, position)

  def play_round(params, key):
    indices, chosen, shown, batch = next_prompts()
    shown = pad_shown(shown, width)
    on_host = (batch.tokens, batch.mask, batch.references, shown, labels[indices])
    tokens, mask, references, presented, of_slates = to_global(on_host, mesh)
    # From here to the advantages nothing leaves the device but free text, which the host reads.
    with jax.set_mesh(mesh):
      rollout = generate(params, tokens, mask, key, sampling, None, references)
      if style.answer == "compact":
        answers = parse_compact(rollout.completions, references[:, :width], presented, vocabulary=vocabulary, style=style)
      else:
        completions = to_local(rollout.completions, mesh)
        answers = to_global(parse_completions(completions, batch.references, shown, chosen, context, style), mesh)
      return rollout, *judge(answers, of_slates, presented, rollout.completion_mask)

  def get_batch(state):
    step_key = jax.random.fold_in(stage_key(run, stage), int(state.step))
    monitors = []

    def judged_round():
      rollout, judgement, found = play_round(state.params, jax.random.fold_in(step_key, len(monitors)))
      monitors.append(found)
      return rollout, judgement

    batch, metrics = collect_groups(
      judged_round,
      num_prompts=options.prompts // jax.process_count(),
      max_rounds=options.max_rounds,
      min_filled=options.min_filled,
      mask_truncated=loss.mask_truncated,
      fetch=functools.partial(to_local, mesh=mesh),
    )
    return batch, merge(monitors) | metrics

  return get_batch


def stop_without_signal(get_batch, limit):
  """The same `get_batch`, which raises NoSignalError after `limit` steps in a row in which no group carried a signal."""
  silence = SilenceCounter(limit)

  def watched(state):
    batch, metrics = get_batch(state)
    silence.add(metrics)
    return batch, metrics

  return watched


def _make_judge(options, loss):
  """Builds the compiled `judge(ParsedAnswers, labels, shown, completion_mask) -> (Judgement, monitors)`."""
  reward_config = RewardConfig(**options.reward)

  @jax.jit
  def judge(answers, labels, shown, completion_mask):
    lengths = jnp.sum(completion_mask, axis=-1)
    rewards = compute_rewards(
      reward_config,
      answers.rankings,
      labels,
      shown,
      mask=labels >= 0,
      shaping=soft_overlong_penalty(lengths, options.max_new_tokens, options.overlong_zone),
      divide_by_std=loss.divide_by_std,
      keep_all=not options.dynamic_sampling,
    )
    monitors = monitor_answers(rewards, answers.rankings, shown, lengths) | monitor_errors(answers.codes)
    return Judgement(rewards.total, rewards.format > 0, rewards.advantages, rewards.keep), monitors

  return judge
