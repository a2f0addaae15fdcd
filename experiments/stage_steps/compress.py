"""The steps of the stage compress: the rewriter's warm-up, its GRPO under a judge and its texts, and the training of soft tokens."""

from collections.abc import Iterator
from typing import Any

import jax

from experiments.stage_steps.sizes import history_length, item_length, shortened_prompt
from experiments.stage_steps.step import Argument, StageStep, abstract_params, abstract_training, integers, random_key, shape
from experiments.stage_steps.written import WrittenSteps
from experiments.stages.compress import CompressOptions
from gr2_jax.compression.rewriter import RewriterOptions
from gr2_jax.compression.rules import rewriter_prompt
from gr2_jax.compression.soft_token_training import ENCODED
from gr2_jax.compression.soft_tokens import SoftTokenBatch, SoftTokenEncoder, encode_items, init_encoder, make_soft_token_loss
from gr2_jax.rl.options import RolloutOptions
from gr2_jax.rollout.copy_constraint import CopyConstraint
from gr2_jax.rollout.generate import Rollout, RolloutConfig, generate
from gr2_jax.rollout.sampling import Sampling
from gr2_jax.settings import read_record
from gr2_jax.steps.lm import make_lm_loss
from gr2_jax.steps.policy import UpdateConfig, make_policy_update
from gr2_jax.steps.update import make_update
from gr2_jax.training.state import init_state, make_optimizer


def compress(steps: WrittenSteps) -> Iterator[StageStep]:
  """Of the variants that are trained; the others compile nothing."""
  options: CompressOptions = read_record(CompressOptions, steps.config, "compress")
  if "rewriter" in options.variants:
    yield from _rewriter(steps, options)
  if "soft_tokens" in options.variants:
    yield from _soft_tokens(steps, options)


def _rewriter(steps: WrittenSteps, options: CompressOptions) -> Iterator[StageStep]:
  rewriter, warmup, style = options.rewriter, options.rewriter.warmup, steps.style
  rows = warmup.batch_size, warmup.row_length
  batch = {name: integers(*rows) for name in ("tokens", "positions", "segment_ids", "parts")}
  loss = make_lm_loss(steps.decoder, {"token": 1.0})
  yield steps.likelihood("compress", "rewriter: warm-up", loss, batch, warmup.training, positions=rows[0] * rows[1])

  prompt = len(rewriter_prompt([], steps.vocabulary)) + history_length(steps.config, steps.sizes)
  constraint = None
  if steps.config.decoding.constraint == "slate" and not style.sid_markers:
    constraint = CopyConstraint(steps.vocabulary, style.max_history)
  rollout, number = RolloutOptions(rewriter.prompts, rewriter.group, options.budget + 1, rewriter.temperature), rewriter.training.steps
  yield _rewrite(steps, "rewriter: texts", rollout, prompt, constraint, number)
  if rewriter.judge == "ranker":
    yield from _judge(steps, rewriter)
  optimizer = make_optimizer(rewriter.training.optimizer, number)
  update = make_policy_update(steps.decoder, optimizer, UpdateConfig(rewriter.loss, rewriter.temperature), constraint, join=steps.join)
  arguments = abstract_training(steps.decoder, optimizer, steps.lora, Argument("batch", steps.groups(rollout, prompt)))
  positions = rollout.prompts * (prompt + rollout.group * rollout.max_new_tokens)
  yield steps.update("compress", "rewriter: update", update, arguments, rewriter.training, positions)

  histories = sum(steps.sizes.slates[split] for split in options.splits)
  greedy = RolloutOptions(options.batch_size, 1, options.budget + 1)
  yield _rewrite(steps, "rewriter: greedy texts", greedy, prompt, constraint, -(-histories // options.batch_size))


def _judge(steps: WrittenSteps, options: RewriterOptions) -> Iterator[StageStep]:
  """The policy's answers to every text that is drawn, and once to each slate with its whole history."""
  number, asked = options.training.steps, RolloutOptions(options.prompts, 1, steps.config.decoding.max_new_tokens)
  short = shortened_prompt(steps.config, steps.sizes)
  yield steps.roll_out("compress", "rewriter: judged texts", steps.decoder, asked, steps.style, number * options.group, short)
  new = min(number, -(-steps.sizes.slates["train"] // options.prompts))
  yield steps.roll_out("compress", "rewriter: judged histories", steps.decoder, asked, steps.style, new)


def _rewrite(
  steps: WrittenSteps, name: str, options: RolloutOptions, prompt: int, constraint: CopyConstraint | None, calls: int
) -> StageStep:
  sizes = {"group": options.group, "max_new_tokens": options.max_new_tokens}
  config = RolloutConfig.of(steps.decoder, steps.vocabulary, constraint=constraint, **sizes)
  sampling = Sampling.create(options.temperature)

  def rewrite(params: Any, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> Rollout:
    references = None if constraint is None else constraint.references(tokens)
    return generate(config, params, tokens, mask, key, sampling, references=references)

  asked = Argument("batch", integers(options.prompts, prompt))
  positions = options.prompts * (prompt + options.group * options.max_new_tokens)
  arguments = (abstract_params(steps.decoder), asked, asked, random_key())
  return StageStep("compress", name, rewrite, arguments, calls, positions=positions, trips=(options.max_new_tokens - 1, 1))


def _soft_tokens(steps: WrittenSteps, options: CompressOptions) -> Iterator[StageStep]:
  soft, limit = options.soft_tokens, steps.config.decoding.max_new_tokens
  rows, number = soft.batch_size, soft.training.steps
  rollout = RolloutOptions(rows, 1, limit, soft.temperature)
  yield steps.roll_out("compress", "soft tokens: answers", steps.decoder, rollout, steps.style, number)

  encoder, features, text = SoftTokenEncoder(soft.per_item, soft.width), steps.decoder.config.width, item_length(steps.config, steps.sizes)
  most = min(steps.style.max_history, options.budget // soft.per_item)
  asked, written = integers(rows, steps.style.max_prompt_tokens), integers(rows, limit)
  short = integers(rows, shortened_prompt(steps.config, steps.sizes))
  items = integers(rows, most, text), integers(rows, most, text), integers(rows, most, steps.sizes.levels)
  batch = SoftTokenBatch(asked, asked, short, short, written, written, *items, shape(rows))
  optimizer = make_optimizer(soft.training.optimizer, number)
  fresh = lambda key: init_state(init_encoder(encoder, key, features), optimizer)
  state = Argument("whole", jax.eval_shape(fresh, jax.random.key(0)))
  update = make_update(optimizer, make_soft_token_loss(steps.decoder, encoder, steps.constraint(steps.style)))
  arguments = (state, Argument("batch", batch), abstract_params(steps.decoder))
  positions = rows * (asked.shape[1] + short.shape[1] + 2 * limit)
  yield steps.update("compress", "soft tokens: update", update, arguments, soft.training, positions)

  encode = lambda params, table, *of: encode_items(encoder, params, table, *of)
  parts = integers(ENCODED, text), integers(ENCODED, text), integers(ENCODED, steps.sizes.levels)
  table = Argument("whole", shape(steps.vocabulary.size, features))
  read = (Argument("whole", state.shapes.params), table, *(Argument("whole", of) for of in parts))
  yield StageStep("compress", "soft tokens: of all items", encode, read, -(-steps.sizes.items // ENCODED), positions=ENCODED * text)
