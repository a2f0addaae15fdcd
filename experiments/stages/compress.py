"""Stage `compress`: shorter histories by rules, by a trained rewriter, or as vectors, and how short they are."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments.checks import check_records, check_training
from gr2_jax.compression.cache import fill_cache
from gr2_jax.compression.rewriter import RewriterOptions, find_short_rows
from gr2_jax.compression.rules import VARIANTS, check_budget
from gr2_jax.compression.soft_token_training import SoftTokenOptions
from gr2_jax.compression.variants import make_compress
from gr2_jax.data.schema import SPLITS
from gr2_jax.errors import ConfigError
from gr2_jax.files import write_json
from gr2_jax.runs.context import StageContext
from gr2_jax.runs.stages import Stage
from gr2_jax.semantic_ids.sizes import FEWEST_LEVELS
from gr2_jax.settings import check_settings, setting

_LONGEST = 256  # histories that are looked at ahead


@dataclasses.dataclass(frozen=True)
class CompressOptions:
  """Which shorter histories are made; without a variant the stage is left out. Raises ValueError."""

  variants: tuple[str, ...] = setting(
    (),
    "how histories are shortened: to semantic IDs alone, by fixed rules, by a trained rewriter, to vectors of items; empty: not at all",
    choices=VARIANTS,
  )
  budget: int = setting(48, "tokens of a shortened history", unit="tokens", low=1)
  splits: tuple[str, ...] = setting(("test",), "slates whose histories are shortened; the evaluation reads those of test", choices=SPLITS)
  batch_size: int = setting(64, "histories shortened at a time", unit="histories", low=1)
  rewriter: RewriterOptions = setting(RewriterOptions(), "the variant rewriter: a model that writes shorter histories")
  soft_tokens: SoftTokenOptions = setting(SoftTokenOptions(), "the variant soft_tokens: vectors that stand for items")

  def __post_init__(self) -> None:
    check_settings(self)


def run(stage: StageContext) -> None:
  """Writes `VARIANT.jsonl` (every history's tokens and outcome), `report.json`, and what the trained variants need."""
  options: CompressOptions = stage.options
  report = {}
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
  if not options.variants:
    return
  if "test" not in options.splits:
    raise ConfigError("--config.compress.splits: the evaluation needs 'test' among them")
  shortest = (config.tokenize.rqvae.levels or FEWEST_LEVELS) + 2 * config.prompt.sid_markers  # tokens of an item, at least
  if "soft_tokens" in options.variants:
    shortest = max(shortest, soft_tokens.per_item)
  check_records({"compress": lambda: check_budget(options.budget, shortest)}, config)
  for key in ("compress.rewriter.warmup", "compress.rewriter", "compress.soft_tokens"):
    check_training(config, key)
  if "rewriter" in options.variants and config.get("distributed"):
    # The ranker would judge other texts in every process, which one program over all of them cannot.
    raise ConfigError("--config.compress.variants: the rewriter is trained in one process; run the stage compress without distributed")
  if rewriter.judge == "chat" and not (rewriter.chat.url and rewriter.chat.model):
    raise ConfigError("--config.compress.rewriter.chat: give the url and the model of the endpoint, or set judge=ranker")
  if soft_tokens.optimizer.rule == "muon":
    raise ConfigError("--config.compress.soft_tokens.optimizer.rule: muon knows the matrices of the decoder alone; use adamw")


def foresee(stage: StageContext) -> list[str]:
  """Rows in which the rewriter's examples find room, of the longest histories that there are."""
  slates = sorted(stage.slates("train"), key=lambda slate: len(slate.history), reverse=True)[:_LONGEST]
  fault = find_short_rows(stage, slates) if slates and "rewriter" in stage.options.variants else None
  return [] if fault is None else [fault]


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
  options=CompressOptions,
  inputs=("data", "tokenize", "midtrain", "slates", "evidence", "rl"),
  unused=unused,
  when="compress.variants",
  check=check,
  batches=batches,
  foresee=foresee,
)
