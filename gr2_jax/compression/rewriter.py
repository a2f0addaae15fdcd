"""Variant A of the compressor: a language model that rewrites histories, trained by GRPO on Eq 11 and then asked greedily.

A model of a million parameters cannot rewrite from nothing, so it starts from the mid-trained checkpoint and is first fine-tuned on the
rule-based compressions at the same budget; GRPO then moves away from them where that pays.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np

from gr2_jax.compression.cache import CompressFn
from gr2_jax.compression.judges import JudgeFn, Question, Verdict, make_chat_judge, make_ranker_judge
from gr2_jax.compression.reward import alpha_at, compression_terms
from gr2_jax.compression.rules import compress_by_rules, count_ellipses, original_tokens, prompt_rows, read_rewrite, rewriter_prompt
from gr2_jax.data.disk_cache import DiskCache
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError, Slate
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import PolicyLossConfig
from gr2_jax.rollout.copy_constraint import CopyConstraint
from gr2_jax.rollout.generate import make_generate
from gr2_jax.rollout.rerank import render_prompts, round_length
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.artifacts import load_policy, load_slates, make_decoder, run_mesh, slate_constraint, stage_checkpoints, stage_key
from gr2_jax.runs.slate_training import draw_slates
from gr2_jax.runs.training import begin, train, train_lm
from gr2_jax.steps.rl import Judgement, RlConfig, collect_groups, make_rl_update
from gr2_jax.teachers.chat import ChatClient, ChatConfig
from gr2_jax.training.mesh import jit_update, to_global, to_local
from gr2_jax.training.metric import Metric, merge

HEADLINE = ("reward", "length_reward", "quality", "valid_rate", "completion_length", "entropy")
_UNJUDGED = Verdict(False, 0.0, 0.0)


def make_rewriter(run, context, style, progress, stop) -> CompressFn:
  """Trains the rewriter where it is not trained yet; a text that cannot be used is replaced by the rules, and counted by its outcome."""
  slates = load_slates(run, context.catalogue, "train")
  decoder, mesh = make_decoder(run, context.vocabulary), run_mesh(run)
  length = round_length(max(len(_prompt(slate, context, style)) for slate in slates))
  judge = make_judge(run, decoder, slates, context, style)  # first, since it may lack something
  _warm_up(run, decoder, mesh, slates, context, style, progress, stop)
  _reinforce(run, decoder, mesh, slates, context, style, judge, length, progress, stop)
  params = load_policy(run, "compress", decoder, "rewriter")
  return _make_compress(run, decoder, params, context, style, length)


def _prompt(slate, context, style):
  return rewriter_prompt(original_tokens(slate, context, style), context.vocabulary)


def _prompt_rows(slates: Sequence[Slate], context, style, length: int) -> tuple[np.ndarray, np.ndarray]:
  """The rewriter's prompts, tokens and mask `[n, length]`; of a history longer than the training ones the oldest tokens go first."""
  tokens = np.full((len(slates), length), context.vocabulary.pad_id, np.int32)
  mask = np.zeros_like(tokens)
  for row, slate in enumerate(slates):
    room = length - len(rewriter_prompt([], context.vocabulary))
    prompt = rewriter_prompt(original_tokens(slate, context, style)[-room:], context.vocabulary)
    tokens[row, : len(prompt)] = prompt
    mask[row, : len(prompt)] = 1
  return tokens, mask


def _by_rules(run, slate, context, style):
  return compress_by_rules(prompt_rows(slate, context, style), context, style, budget=run.config.compressor.budget)


def _warm_up(run, decoder, mesh, slates, context, style, progress, stop):
  """Supervised fine-tuning of the mid-trained model on the rule-based compressions."""
  options, vocabulary = run.config.compressor.rewriter.warmup, context.vocabulary

  def to_example(slate, rng):
    prompt, target = _prompt(slate, context, style), [*_by_rules(run, slate, context, style), vocabulary.eos_id]
    return {"tokens": prompt + target, "parts": [0] * len(prompt) + [1] * len(target)}

  longest = max(len(to_example(slate, None)["tokens"]) for slate in slates)
  if longest > options.row_length:
    raise DataError(
      f"config.compressor.rewriter.warmup.row_length: {options.row_length} is too short for a history with its compression, "
      f"which takes up to {longest} tokens; raise it"
    )
  batches = make_pipeline(
    slates,
    seed=run.config.seed,
    batch_size=options.batch_size,
    map_fn=to_example,
    pack_length=options.row_length,
    pad_id=vocabulary.pad_id,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  train_lm(
    run,
    "compress",
    decoder,
    batches,
    options,
    mesh,
    key=stage_key(run, "compress"),
    init=stage_checkpoints(run, "midtrain"),
    part_names=("token",),
    part_weights=(1.0,),
    name="rewriter_warmup",
    progress=progress,
    stop=stop,
  )


def _reinforce(run, decoder, mesh, slates, context, style, judge, length, progress, stop):
  """GRPO: all of a group are kept, and advantages are relative to it."""
  options = run.config.compressor.rewriter
  optimizer, state, shardings = begin(decoder, options, mesh, None, stage_checkpoints(run, "compress", "rewriter_warmup"))
  loss = PolicyLossConfig(**options.loss)
  constraint = _copy_constraint(run, context.vocabulary, style)
  update = jit_update(make_rl_update(decoder, optimizer, RlConfig(loss, options.temperature), constraint), mesh, shardings)
  position = draw_slates(run, slates, options.prompts)
  generate = _make_generate(run, decoder, context, constraint, group=options.group)
  sampling = Sampling.create(options.temperature)

  def get_batch(state):
    step = int(state.step)
    alpha = alpha_at(step, options.steps, options.alpha)
    key = jax.random.fold_in(stage_key(run, "compress"), step)
    found = []

    def play_round():
      chosen = [slates[i] for i in next(position)["slate"]]
      tokens, mask = to_global(_prompt_rows(chosen, context, style, length), mesh)
      with jax.set_mesh(mesh):
        rollout = to_local(generate(state.params, tokens, mask, key, sampling), mesh)
      judgement, metrics = judge_rewrites(chosen, np.asarray(rollout.completions), judge, context, style, alpha, loss.divide_by_std)
      found.append(metrics)
      return rollout, judgement

    batch, metrics = collect_groups(play_round, num_prompts=options.prompts, max_rounds=1, mask_truncated=loss.mask_truncated)
    return batch, merge(found) | metrics

  train(
    run,
    "compress",
    state,
    update,
    get_batch,
    position=position,
    options=options,
    name="rewriter",
    label="compress (rewriter)",
    headline=HEADLINE,
    progress=progress,
    stop=stop,
  )


def _copy_constraint(run, vocabulary, style) -> CopyConstraint | None:
  """Semantic IDs are copied whole, where answers are constrained too. Codes within markers are left to the reader of the text."""
  constrained = run.config.decoding.constraint == "slate" and not style.sid_markers
  return CopyConstraint(vocabulary, style.max_history) if constrained else None


def _make_generate(run, decoder, context, constraint, *, group):
  vocabulary = context.vocabulary
  generate = make_generate(
    decoder,
    group=group,
    max_new_tokens=run.config.compressor.budget + 1,  # eos
    eos_id=vocabulary.eos_id,
    pad_id=vocabulary.pad_id,
    constraint=constraint,
  )

  def rewrite(params, tokens, mask, key, sampling):
    references = None if constraint is None else constraint.references(tokens)
    return generate(params, tokens, mask, key, sampling, None, references)

  return rewrite


def make_judge(run, decoder, slates, context, style) -> JudgeFn:
  """The judge that the config names: the run's policy, frozen, or a chat endpoint whose answers are kept in `RUN/compress/chat.jsonl`."""
  options = run.config.compressor.rewriter
  if options.judge == "chat":
    config = ChatConfig(**options.chat)
    key = os.environ.get(config.api_key_variable) if config.api_key_variable else None
    if config.api_key_variable and not key:
      raise DataError(f"config.compressor.rewriter.chat.api_key_variable: {config.api_key_variable} is not set; export the key under it")
    cache = DiskCache(run.path("compress", "chat.jsonl"), write=run.main)
    return make_chat_judge(ChatClient(config, cache, api_key=key), context, style)
  generate = make_generate(
    decoder,
    group=1,
    max_new_tokens=run.config.rl.max_new_tokens,
    eos_id=context.vocabulary.eos_id,
    pad_id=context.vocabulary.pad_id,
    constraint=slate_constraint(run, context.vocabulary),
  )
  in_order = [np.arange(len(slate.candidates)) for slate in slates]
  bare = render_prompts(slates, in_order, context, style, histories=[[]] * len(slates)).tokens.shape[1]
  return make_ranker_judge(
    generate,
    load_policy(run, "rl", decoder),
    context,
    style,
    metric=options.metric,
    batch_size=options.prompts,
    length=round_length(bare + run.config.compressor.budget),
  )


def judge_rewrites(
  slates: Sequence[Slate], completions: np.ndarray, judge: JudgeFn, context, style, alpha: float, divide_by_std: bool = True
) -> tuple[Judgement, dict[str, Metric]]:
  """Eq 11 of the completions `[P, G, Lc]` to the slates' histories, and what its parts are on the mean; a text that is none earns 0."""
  shape = completions.shape[:2]
  rows = [prompt_rows(slate, context, style) for slate in slates]
  texts = [read_rewrite(completion, rows[p], context, style) for p in range(shape[0]) for completion in completions[p]]
  owners = [slate for slate in slates for _ in range(shape[1])]
  valid = np.array([outcome == "ok" for _, outcome in texts])
  verdicts = iter(judge([Question(slate, tokens) for slate, (tokens, _), ok in zip(owners, texts, valid, strict=True) if ok]))
  solvable, preservation, quality = zip(*(next(verdicts) if ok else _UNJUDGED for ok in valid), strict=True)
  original = [len(original_tokens(slate, context, style)) for slate in slates]
  terms = compression_terms(
    compressed=np.array([len(tokens) for tokens, _ in texts]),
    original=np.repeat(original, shape[1]),
    solvable=np.array(solvable),
    preservation=np.array(preservation),
    quality=np.array(quality),
    ellipses=np.array([count_ellipses(context.vocabulary.decode(tokens)) for tokens, _ in texts]),
    valid=valid,
    alpha=alpha,
  )

  def mean(values, where=None):
    where = np.ones_like(valid) if where is None else where
    return Metric(float(np.sum(np.where(where, values, 0.0))), float(np.sum(where)))

  outcomes = np.array([outcome for _, outcome in texts])
  metrics = {f"{outcome}_rate": mean(outcomes == outcome) for outcome in ("overlong", "empty", "wrong_format", "unknown_item")}
  metrics |= {
    "alpha": mean(np.full(len(valid), alpha)),
    "length_reward": mean(terms.shorter, valid),
    "judge_reward": mean(terms.judged, valid),
    "ellipsis_factor": mean(terms.whole, valid),
    "solvable_rate": mean(solvable, valid),
    "preservation": mean(preservation, valid),
    "quality": mean(quality, valid),
  }
  total = terms.total.reshape(shape)
  advantages, _ = group_advantages(total, total, divide_by_std=divide_by_std)
  return Judgement(total, valid.reshape(shape), np.asarray(advantages), np.ones(shape[0], bool)), metrics


def _make_compress(run, decoder, params, context, style, length) -> CompressFn:
  """Greedy rewrites, in batches of one shape."""
  generate = _make_generate(run, decoder, context, _copy_constraint(run, context.vocabulary, style), group=1)
  batch_size, greedy = run.config.compressor.batch_size, Sampling.create(temperature=0.0)

  def compress(slates: Sequence[Slate]) -> list[tuple[list[int], str]]:
    tokens, mask = _prompt_rows([slates[i % len(slates)] for i in range(batch_size)], context, style, length)
    completions = np.asarray(generate(params, tokens, mask, jax.random.key(0), greedy).completions)[: len(slates), 0]
    found = []
    for slate, completion in zip(slates, completions, strict=True):
      text, outcome = read_rewrite(completion, prompt_rows(slate, context, style), context, style)
      outcome = outcome if slate.history else "no_history"
      found.append((text if outcome == "ok" else _by_rules(run, slate, context, style), outcome))
    return found

  return compress
