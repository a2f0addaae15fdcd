"""Variant A of the compressor: a language model that rewrites histories, trained by GRPO on Eq 11 and then asked greedily.

A model of a million parameters cannot rewrite from nothing, so it starts from the mid-trained checkpoint and is first fine-tuned on the
rule-based compressions at the same budget; GRPO then moves away from them where that pays.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gr2_jax.compression.cache import CompressFn
from gr2_jax.compression.judges import JudgeFn, Question, Verdict, make_chat_judge, make_ranker_judge
from gr2_jax.compression.reward import alpha_at, compression_terms
from gr2_jax.compression.rules import compress_by_rules, count_ellipses, original_tokens, prompt_rows, read_rewrite, rewriter_prompt
from gr2_jax.data.disk_cache import DiskCache
from gr2_jax.data.pipelines import make_pipeline
from gr2_jax.data.schema import DataError, Slate
from gr2_jax.language.prompts import PromptContext, PromptStyle
from gr2_jax.objectives.advantages import group_advantages
from gr2_jax.objectives.policy import GRPO, PolicyLossConfig
from gr2_jax.rewards.judge import Judgement
from gr2_jax.rl.collect import Round, collect_groups
from gr2_jax.rl.draw import draw_indices
from gr2_jax.rollout.copy_constraint import CopyConstraint
from gr2_jax.rollout.generate import Rollout, RolloutConfig, make_generate
from gr2_jax.rollout.rerank import render_prompts, round_length
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.training import TrainingOptions, begin, train, train_lm
from gr2_jax.settings import check_settings, setting, spread
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.teachers.chat import ChatClient, ChatConfig
from gr2_jax.training.loop import StepResult
from gr2_jax.training.mesh import jit_update, to_global, to_local
from gr2_jax.training.metric import Metric
from gr2_jax.training.state import OptimizerConfig, TrainState

HEADLINE = ("reward", "length_reward", "quality", "valid_rate", "completion_length", "entropy")
_UNJUDGED = Verdict(False, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class WarmUpOptions:
  """The rewriter's fine-tuning on what the rules write. Raises ValueError."""

  batch_size: int = setting(16, "rows of an update", unit="rows", low=1)
  row_length: int = setting(512, "length of the rows into which histories with their compressions are packed", unit="tokens", low=1)
  training: TrainingOptions = spread(TrainingOptions(300, OptimizerConfig(1e-3, schedule="cosine", warmup_steps=20, weight_decay=0.01)))

  def __post_init__(self) -> None:
    check_settings(self)


@dataclasses.dataclass(frozen=True)
class RewriterOptions:
  """How the rewriter learns: from the mid-trained model, fine-tuned on what the rules write, then GRPO on Eq 11. Raises ValueError."""

  prompts: int = setting(8, "histories of a step of GRPO", unit="histories", low=1)
  group: int = setting(8, "texts drawn for a history, each judged by the others", unit="texts", low=2)
  temperature: float = setting(1.0, "temperature at which texts are drawn", above=0)
  alpha: tuple[float, float] = setting(
    (0.3, 0.5), "weight of length against quality (Eq 11), in the first and in the last step", low=0, high=1
  )
  loss: PolicyLossConfig = setting(GRPO, "the policy loss of the rewriter")
  warmup: WarmUpOptions = setting(WarmUpOptions(), "fine-tuning on what the rules write, before GRPO")
  judge: str = setting("ranker", "who judges the texts: the run's policy, or an OpenAI-compatible endpoint", choices=("ranker", "chat"))
  metric: Literal["auc", "ndcg"] = setting("auc", "the ranking reward by which the policy judges")
  chat: ChatConfig = setting(ChatConfig(), "the endpoint of the judge `chat`")
  training: TrainingOptions = spread(TrainingOptions(60, OptimizerConfig(5e-5, warmup_steps=5), save_every=20, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)


def make_rewriter(stage: StageContext) -> CompressFn:
  """Trains the rewriter where it is not trained yet; a text that cannot be used is replaced by the rules, and counted by its outcome."""
  slates = stage.slates("train")
  length = round_length(max(len(_prompt(stage, slate)) for slate in slates))
  judge = make_judge(stage, slates)  # first, since it may lack something
  _warm_up(stage, slates)
  _reinforce(stage, slates, judge, length)
  return _make_compress(stage, stage.load_params("compress", "rewriter"), length)


def _prompt(stage: StageContext, slate: Slate) -> list[int]:
  return rewriter_prompt(original_tokens(slate, stage.prompts, stage.style), stage.vocabulary)


def _prompt_rows(stage: StageContext, slates: Sequence[Slate], length: int) -> tuple[np.ndarray, np.ndarray]:
  """The rewriter's prompts, tokens and mask `[n, length]`; of a history longer than the training ones the oldest tokens go first."""
  tokens = np.full((len(slates), length), stage.vocabulary.pad_id, np.int32)
  mask = np.zeros_like(tokens)
  room = length - len(rewriter_prompt([], stage.vocabulary))
  for row, slate in enumerate(slates):
    prompt = rewriter_prompt(original_tokens(slate, stage.prompts, stage.style)[-room:], stage.vocabulary)
    tokens[row, : len(prompt)] = prompt
    mask[row, : len(prompt)] = 1
  return tokens, mask


def _by_rules(stage: StageContext, slate: Slate) -> list[int]:
  rows = prompt_rows(slate, stage.prompts, stage.style)
  return compress_by_rules(rows, stage.prompts, stage.style, budget=stage.options.budget)


def _warm_up(stage: StageContext, slates: Sequence[Slate]) -> None:
  """Supervised fine-tuning of the mid-trained model on the rule-based compressions."""
  options, vocabulary = stage.options.rewriter.warmup, stage.vocabulary

  if fault := find_short_rows(stage, slates):
    raise DataError(fault)
  batches = make_pipeline(
    slates,
    seed=stage.seed,
    batch_size=options.batch_size,
    map_fn=functools.partial(_to_example, stage),
    pack_length=options.row_length,
    pad_id=vocabulary.pad_id,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  train_lm(stage, "compress.rewriter.warmup", batches, {"token": 1.0}, init=stage.checkpoints("midtrain"), name="rewriter_warmup")


def find_short_rows(stage: StageContext, slates: Sequence[Slate]) -> str | None:
  """The fault of rows that are too short for the warm-up's examples of these slates."""
  longest, row_length = max(len(_to_example(stage, slate)["tokens"]) for slate in slates), stage.options.rewriter.warmup.row_length
  if longest <= row_length:
    return None
  key = "--config.compress.rewriter.warmup.row_length"
  return f"{key}: {row_length} is too short for a history with its compression, which takes up to {longest} tokens; raise it"


def _to_example(stage: StageContext, slate: Slate, rng: np.random.Generator | None = None) -> dict[str, list[int]]:
  prompt, target = _prompt(stage, slate), [*_by_rules(stage, slate), stage.vocabulary.eos_id]
  return {"tokens": prompt + target, "parts": [0] * len(prompt) + [1] * len(target)}


def _reinforce(stage: StageContext, slates: Sequence[Slate], judge: JudgeFn, length: int) -> None:
  """GRPO: all of a group are kept, and advantages are relative to it."""
  options: RewriterOptions = stage.options.rewriter
  begun = begin(stage, stage.decoder, "compress.rewriter", stage.checkpoints("compress", "rewriter_warmup"))
  config = UpdateConfig(options.loss, options.temperature)
  update = make_policy_update(stage.decoder, begun.optimizer, config, _copy_constraint(stage), join=begun.join)
  compiled = jit_update(update, stage.mesh, begun.shardings, frozen=begun.frozen)
  position = draw_indices(len(slates), options.prompts, stage.seed)
  rewrite, sampling = _make_rewrite(stage, options.group), Sampling.create(options.temperature)

  def step(state: TrainState) -> StepResult:
    number = int(state.step)
    alpha = alpha_at(number, options.training.steps, options.alpha)
    key = jax.random.fold_in(stage.key, number)

    def play_round(_: int) -> Round:
      chosen = [slates[i] for i in next(position)["slate"]]  # draw slates
      tokens, mask = to_global(_prompt_rows(stage, chosen, length), stage.mesh)
      with jax.set_mesh(stage.mesh):
        rollout = to_local(rewrite(begun.whole(state.params), tokens, mask, key, sampling), stage.mesh)  # roll out
      completions = np.asarray(rollout.completions)
      judgement = judge_rewrites(  # read, reward, compare
        chosen, completions, judge, stage.prompts, stage.style, alpha, divide_by=options.loss.divide_by
      )
      return Round(rollout, judgement, np.array([slate.weight for slate in chosen], np.float32))

    batch, metrics = collect_groups(play_round, num_prompts=options.prompts, max_rounds=1, mask_truncated=options.loss.mask_truncated)
    new_state, learnt = compiled(state, batch)
    return StepResult(new_state, batch, metrics, learnt)

  train(stage, "compress.rewriter", begun, step, position, name="rewriter", headline=HEADLINE)


def _copy_constraint(stage: StageContext) -> CopyConstraint | None:
  """Semantic IDs are copied whole, where answers are constrained too. Codes within markers are left to the reader of the text."""
  constrained = stage.config.decoding.constraint == "slate" and not stage.style.sid_markers
  return CopyConstraint(stage.vocabulary, stage.style.max_history) if constrained else None


def _make_rewrite(stage: StageContext, group: int) -> Callable[..., Rollout]:
  """`rewrite(params, prompts, mask, key, sampling) -> Rollout` of texts within the budget, and eos."""
  constraint = _copy_constraint(stage)
  sizes = {"group": group, "max_new_tokens": stage.options.budget + 1}
  generate = make_generate(RolloutConfig.of(stage.decoder, stage.vocabulary, constraint=constraint, **sizes))

  def rewrite(params: Any, tokens: jax.Array, mask: jax.Array, key: jax.Array, sampling: Sampling) -> Rollout:
    references = None if constraint is None else constraint.references(tokens)
    return generate(params, tokens, mask, key, sampling, references=references)

  return rewrite


def make_judge(stage: StageContext, slates: Sequence[Slate]) -> JudgeFn:
  """The judge that the config names: the run's policy, frozen, or a chat endpoint whose answers are kept in `RUN/compress/chat.jsonl`."""
  options: RewriterOptions = stage.options.rewriter
  if options.judge == "chat":
    config = options.chat
    key = os.environ.get(config.api_key_variable) if config.api_key_variable else None
    if config.api_key_variable and not key:
      raise DataError(f"config.compress.rewriter.chat.api_key_variable: {config.api_key_variable} is not set; export the key under it")
    cache = DiskCache(stage.path("chat.jsonl"), write=stage.run.main)
    return make_chat_judge(ChatClient(config, cache, api_key=key), stage.prompts, stage.style)
  sizes = {"group": 1, "max_new_tokens": stage.config.decoding.max_new_tokens}
  generate = make_generate(RolloutConfig.of(stage.decoder, stage.vocabulary, constraint=stage.constraint(stage.style), **sizes))
  in_order = [np.arange(len(slate.candidates)) for slate in slates]
  bare = render_prompts(slates, in_order, stage.prompts, stage.style, histories=[[]] * len(slates)).tokens.shape[1]
  return make_ranker_judge(
    generate,
    stage.load_params("rl"),
    stage.prompts,
    stage.style,
    metric=options.metric,
    batch_size=options.prompts,
    length=round_length(bare + stage.options.budget),
  )


def judge_rewrites(
  slates: Sequence[Slate],
  completions: np.ndarray,
  judge: JudgeFn,
  context: PromptContext,
  style: PromptStyle,
  alpha: float,
  *,
  divide_by: str = "std",
) -> Judgement:
  """Eq 11 of the completions `[P, G, Lc]` to the slates' histories, with the means of its parts; a text that is none earns 0."""
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

  def mean(values: Any, where: np.ndarray | None = None) -> Metric:
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
  rewards = jnp.asarray(total)
  advantages, _ = group_advantages(rewards, rewards, divide_by=divide_by)
  return Judgement(total, valid.reshape(shape), np.asarray(advantages), np.ones(shape[0], bool), metrics)


def _make_compress(stage: StageContext, params: Any, length: int) -> CompressFn:
  """Greedy rewrites, in batches of one shape."""
  rewrite, batch_size, greedy = _make_rewrite(stage, group=1), stage.options.batch_size, Sampling.create(temperature=0.0)

  def compress(slates: Sequence[Slate]) -> list[tuple[list[int], str]]:
    tokens, mask = _prompt_rows(stage, [slates[i % len(slates)] for i in range(batch_size)], length)
    completions = np.asarray(rewrite(params, tokens, mask, jax.random.key(0), greedy).completions)[: len(slates), 0]
    found = []
    for slate, completion in zip(slates, completions, strict=True):
      text, outcome = read_rewrite(completion, prompt_rows(slate, stage.prompts, stage.style), stage.prompts, stage.style)
      outcome = outcome if slate.history else "no_history"
      found.append((text if outcome == "ok" else _by_rules(stage, slate), outcome))
    return found

  return compress
