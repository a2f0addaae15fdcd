"""Stage `compress`: shorter histories by rules, by a trained rewriter, or as vectors, and how short they are."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_choice, check_records, check_training
from gr2_jax.compression.cache import fill_cache
from gr2_jax.compression.rewriter import RewriterOptions
from gr2_jax.compression.rules import VARIANTS, check_budget
from gr2_jax.compression.variants import make_compress
from gr2_jax.errors import ConfigError
from gr2_jax.files import write_json
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.semantic_ids.sizes import FEWEST_LEVELS
from gr2_jax.teachers.chat import ChatConfig


def run(stage: StageContext) -> None:
  """Writes `VARIANT.jsonl` (every history's tokens and outcome), `report.json`, and what the trained variants need."""
  options, report = stage.options, {}
  slates = [slate for split in options.splits for slate in stage.slates(split)]
  for variant in options.variants:
    compress = make_compress(stage, variant)
    with stage.task(f"compress: {variant}", len({slate.history for slate in slates}), "histories") as task:
      of = report[variant] = fill_cache(stage, variant, compress, slates, options.batch_size, task)
    outcomes = ", ".join(f"{outcome.replace('_', ' ')} {count:,}" for outcome, count in of["outcomes"].items())
    stage.say(f"{variant}: {of['compressed_tokens']:.1f} of {of['original_tokens']:.1f} tokens a history, {outcomes}")
  write_json(stage.path("report.json"), report)


def check(config: ConfigDict) -> None:
  """Variants that there are, a budget that holds an item, and a judge that can be asked."""
  options = config.compress
  rewriter, soft_tokens = options.rewriter, options.soft_tokens
  check_choice(config, "compress.rewriter.judge", ("ranker", "chat"))
  check_choice(config, "compress.rewriter.metric", ("auc", "ndcg"))
  if not options.variants:
    return
  unknown = [variant for variant in options.variants if variant not in VARIANTS]
  if unknown:
    raise ConfigError(f"--config.compress.variants: {unknown[0]!r} is not known; choose from {', '.join(VARIANTS)}")
  if "test" not in options.splits:
    raise ConfigError("--config.compress.splits: the evaluation needs 'test' among them")
  shortest = (config.tokenize.rqvae.levels or FEWEST_LEVELS) + 2 * config.prompt.sid_markers  # tokens of an item, at least
  if "soft_tokens" in options.variants:
    shortest = max(shortest, soft_tokens.per_item)
  check_records(
    {
      "compress": lambda: check_budget(options.budget, shortest),
      "compress.rewriter": lambda: RewriterOptions.read(rewriter),
      "compress.rewriter.chat": lambda: ChatConfig(**rewriter.chat),
    }
  )
  for key in ("compress.rewriter.warmup", "compress.rewriter", "compress.soft_tokens"):
    check_training(config, key)
  if "rewriter" in options.variants and config.get("distributed"):
    # The ranker would judge other texts in every process, which one program over all of them cannot.
    raise ConfigError("--config.compress.variants: the rewriter is trained in one process; run the stage compress without distributed")
  if rewriter.judge == "chat" and not (rewriter.chat.url and rewriter.chat.model):
    raise ConfigError("--config.compress.rewriter.chat: give the url and the model of the endpoint, or set judge=ranker")
  if soft_tokens.optimizer.rule == "muon":
    raise ConfigError("--config.compress.soft_tokens.optimizer.rule: muon knows the matrices of the decoder alone; use adamw")


def batches(config: ConfigDict) -> Mapping[str, tuple[int, int]]:
  """Rows of the trainings."""
  rewriter = config.compress.rewriter
  rows = {"rewriter.warmup.batch_size": rewriter.warmup.batch_size, "rewriter.prompts": rewriter.prompts}
  rows |= {"soft_tokens.batch_size": config.compress.soft_tokens.batch_size}
  return {f"compress.{key}": (of, 1) for key, of in rows.items()} if config.compress.variants else {}


def unused(config: ConfigDict) -> tuple[str, ...]:
  """The training of a variant that is not asked for."""
  return tuple(f"compress.{variant}" for variant in ("rewriter", "soft_tokens") if variant not in config.compress.variants)


STAGE = Stage(
  "compress",
  run,
  reads=("seed", "model", "mesh", "prompt", "decoding", "compress"),
  inputs=("data", "tokenize", "midtrain", "slates", "rl"),
  unused=unused,
  when="compress.variants",
  check=check,
  batches=batches,
)
