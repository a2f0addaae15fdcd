"""Stage `direct`: the policy learns to answer without reasoning, by RL with the same reward or by one of its controls."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.checks import check_records, check_targets, check_training
from experiments.scored import train_on_targets
from gr2_jax.data.schema import DataError
from gr2_jax.errors import ConfigError
from gr2_jax.files import replacing
from gr2_jax.language.answers import render_answer
from gr2_jax.language.prompts import present
from gr2_jax.rl.draw import Drawn
from gr2_jax.rl.options import GroupOptions, RolloutOptions, read_rollout_options
from gr2_jax.rollout.generate import RolloutConfig, make_generate
from gr2_jax.rollout.rerank import append_reasoning, rank_slates, render_prompts
from gr2_jax.rollout.scoring import answer_opening
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord
from gr2_jax.runs.policy_training import completion_batch, make_local_roll_out, make_stream, train_by_loss, train_by_reward
from gr2_jax.runs.scored import TARGETS
from gr2_jax.runs.stages import Init, Stage
from gr2_jax.runs.starts import FROM_MODEL
from gr2_jax.runs.training import TrainingOptions
from gr2_jax.settings import check_settings, read_record, setting, spread
from gr2_jax.steps.direct import make_answer_loss, make_distillation_loss, make_listwise_loss
from gr2_jax.training.state import OptimizerConfig

INIT = Init("direct.init", ("midtrain", "sft", "opd", "rl", FROM_MODEL))
_METHODS = ("rl", "sft", "distil", "scores")


@dataclasses.dataclass(frozen=True)
class DirectOptions:
  """A second pass in which the policy learns to answer without reasoning. Raises ValueError."""

  enabled: bool = setting(False, "whether there is a direct policy")
  init: str = setting("rl", "the stage whose policy it starts from", choices=INIT.choices)
  method: str = setting(
    "rl",
    "how it learns. rl: by reward; sft: from the answers of init; distil: init, after its own reasoning, scores its answers; scores: "
    "listwise from labels, for one-pass scoring",
    choices=_METHODS,
  )
  targets: str = setting(
    "mixture", "what a scored policy learns, which starts anew: labels, the out-of-fold tree's scores, or half and half", choices=TARGETS
  )
  max_slates: int | None = setting(None, "training slates that init answers for sft; None: all", unit="slates", low=1)
  groups: GroupOptions = spread(GroupOptions())
  training: TrainingOptions = spread(TrainingOptions(60, OptimizerConfig(1e-4, warmup_steps=5), save_every=25, log_every=1))

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Trains from the checkpoints of `direct.init` by `direct.method`; writes checkpoints."""
  if stage.config.answer.form == "scored":
    return train_on_targets(stage, stage.options.targets, stage.options.groups.prompts)
  {"rl": _by_reward, "sft": _by_answers, "distil": _by_own_reasoning, "scores": _by_labels}[stage.options.method](stage)


def _rollout(stage: StageContext) -> RolloutOptions:
  """How the policy is asked without reasoning: the limit of new tokens is what an answer takes."""
  return read_rollout_options(stage.options.groups, stage.most_new_tokens(stage.direct_style))


def _by_reward(stage: StageContext) -> None:
  """The stage `rl` once more, on direct prompts; no answer is overlong."""
  options: DirectOptions = stage.options
  learning = options.groups.to_rl(stage.config.decoding.max_new_tokens)
  collect = dataclasses.replace(learning.collect, rollout=_rollout(stage), overlong_zone=0)
  train_by_reward(stage, dataclasses.replace(learning, collect=collect), stage.direct_style, stage.start(options.init))


def _by_answers(stage: StageContext) -> None:
  """Off-policy: the answers that `init` gives after its reasoning, without the reasoning, under ever new presentations."""
  options, context, style = stage.options, stage.prompts, stage.direct_style
  rankings = _answers_after_reasoning(stage)
  valid = np.flatnonzero(rankings[:, 0] >= 0)
  if not len(valid):
    raise DataError(f"direct: {options.init} gave no valid answer to learn from; train it longer")
  slates, rankings = [stage.slates("train")[i] for i in valid], rankings[valid]
  vocabulary, rollout = stage.vocabulary, _rollout(stage)

  def make_batch(params: Any, step: int, drawn: Drawn) -> dict[str, np.ndarray]:
    completions = np.full((len(drawn.slates), 1, rollout.max_new_tokens), vocabulary.pad_id, np.int32)
    mask = np.zeros(completions.shape, np.int32)
    for row, (index, slate, order) in enumerate(zip(drawn.indices, drawn.slates, drawn.shown, strict=True)):
      codes = context.codes[context.catalogue.to_rows(slate.candidates)]
      tokens = render_answer(rankings[index][: len(order)], order, None, vocabulary, style, codes).tokens
      completions[row, 0, : len(tokens)], mask[row, 0, : len(tokens)] = tokens, 1
    return completion_batch(drawn, completions, mask)

  loss_fn = make_answer_loss(stage.decoder, stage.constraint(style))
  stream = make_stream(stage, style, rollout, slates)
  train_by_loss(stage, stage.decoder, stage.start(options.init), stream, loss_fn, make_batch)


def _by_own_reasoning(stage: StageContext) -> None:
  """On-policy self-distillation: `init` reasons about a prompt, and after that reasoning scores the tokens that the student answered.

  One reasoning is drawn for all answers to a prompt in a step; over the steps the student sees the mean of what its teacher reasons.
  """
  options, rollout, vocabulary = stage.options, _rollout(stage), stage.vocabulary
  stream, teacher = make_stream(stage, stage.direct_style, rollout), stage.load_params(options.init)
  reasoning = dataclasses.replace(rollout, group=1, max_new_tokens=stage.config.decoding.max_new_tokens, decode_rows=None)
  reason = make_local_roll_out(stage, stage.decoder, stage.style, reasoning)
  answer = make_local_roll_out(stage, stage.decoder, stage.direct_style, rollout)

  def make_batch(params: Any, step: int, drawn: Drawn) -> dict[str, np.ndarray]:
    keys = jax.random.split(jax.random.fold_in(stage.key, step))
    length = drawn.prompts.tokens.shape[1]
    asked = drawn._replace(prompts=render_prompts(drawn.slates, drawn.shown, stage.prompts, stage.style, length=length))
    thoughts, answers = reason(teacher, asked, keys[0]), answer(params, drawn, keys[1])
    texts, mask, ended = append_reasoning(asked.prompts, thoughts.completions[:, 0], vocabulary)
    batch = completion_batch(drawn, answers.completions, answers.completion_mask & ended[:, None, None])
    return batch | {"teacher_prompts": texts, "teacher_mask": mask}

  loss_fn = make_distillation_loss(stage.decoder, stage.decoder, stage.constraint(stage.direct_style))
  init = stage.start(options.init)
  train_by_loss(stage, stage.decoder, init, stream, loss_fn, make_batch, frozen=(teacher,))


def _by_labels(stage: StageContext) -> None:
  """Listwise: the one-pass scores are trained as such, and nothing is decoded."""
  style, init = stage.direct_style, stage.start(stage.options.init)

  def make_batch(params: Any, step: int, drawn: Drawn) -> dict[str, np.ndarray]:
    by_slot = np.take_along_axis(drawn.labels, drawn.presented, axis=1)
    references = drawn.prompts.references[:, : by_slot.shape[1]]
    return {"prompts": drawn.prompts.tokens, "prompt_mask": drawn.prompts.mask, "references": references, "labels": by_slot}

  loss_fn = make_listwise_loss(stage.decoder, answer_opening(stage.vocabulary, style), stage.constraint(style))
  train_by_loss(stage, stage.decoder, init, make_stream(stage, style, _rollout(stage)), loss_fn, make_batch)


def _answers_after_reasoning(stage: StageContext) -> np.ndarray:
  """Greedy rankings `[n, K]` of `init` to the training slates, kept in `RUN/direct/answers.npz`."""
  path, options = stage.path("answers.npz"), stage.options
  if path.exists():
    return np.load(path)["rankings"]
  slates = stage.slates("train")[: options.max_slates]
  shown = [present(len(slate.candidates), options.groups.presentation, (stage.seed, i, 0)) for i, slate in enumerate(slates)]
  sizes = {"group": 1, "max_new_tokens": stage.config.decoding.max_new_tokens, "constraint": stage.constraint(stage.style)}
  generate = make_generate(RolloutConfig.of(stage.decoder, stage.vocabulary, **sizes))
  with stage.task("direct: answers", len(slates), "slates") as task:
    found = rank_slates(
      generate,
      stage.load_params(options.init),
      slates,
      shown,
      stage.prompts,
      stage.style,
      batch_size=options.groups.prompts * options.groups.group,
      key=stage.key,
      on_progress=stage.on_progress(task),
    )
  if stage.run.main:
    with replacing(path) as partial:
      np.savez(partial, rankings=found.rankings)
  return found.rankings


def check(config: ConfigDict) -> None:
  """The method must go with where it starts and with the form of answers."""
  direct = config.direct
  check_records({"direct": lambda: read_record(DirectOptions, config, "direct").groups.to_rl(config.decoding.max_new_tokens)}, config)
  if not direct.enabled:
    return
  check_training(config, "direct")
  if config.answer.form == "scored":
    if direct.init == "opd":
      raise ConfigError("--config.direct.init: 'opd', but a scored direct policy starts anew and learns direct.targets; leave it out")
    return check_targets(config, "direct")
  if direct.method in ("sft", "distil") and direct.init == "midtrain":
    raise ConfigError(f"--config.direct.init: {direct.method!r} learns from the answers or the reasoning of init; choose sft or rl")
  if direct.method in ("distil", "scores") and config.prompt.answer != "compact":
    raise ConfigError(f"--config.direct.method: {direct.method!r} is for compact answers, not for {config.prompt.answer}")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Prompts of a step."""
  direct = config.direct
  cuts = direct.minibatches * direct.microbatches if direct.method == "rl" else 1
  return {"direct.prompts": (direct.prompts, cuts)} if direct.enabled else {}


def policies(config: ConfigDict) -> tuple[PolicyRecord, ...]:
  """The direct policy; a compact answer can also be read from one pass.

  One pass reads the probabilities of a direct answer's first reference, which every method trains; those of the further ones not all do.
  """
  if config.answer.form == "scored":
    against = ("midtrain", "lambdamart", "lambdamart_all", "policy")
    return (PolicyRecord("direct", (RankerRecord("direct", "direct policy", "score", against=against),), form="scored"),)
  by_scores = config.direct.method == "scores"
  rankers = [RankerRecord("direct", "direct policy", "direct", against=("policy",), trained=not by_scores)]
  if config.prompt.answer == "compact":
    scores = RankerRecord("direct_scores", "direct policy, one pass", "score", against=("direct",))
    rankers.insert(0 if by_scores else 1, scores)
  return (PolicyRecord("direct", tuple(rankers)),)


STAGE = Stage(
  "direct",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "answer", "direct"),
  options=DirectOptions,
  inputs=("data", "tokenize", "slates", "evidence"),
  init=INIT,
  when="direct.enabled",
  check=check,
  batches=batches,
  policies=policies,
)
