"""Stage `compress`: shorter histories by rules, by a trained rewriter, or as vectors, and how short they are."""

import functools

from gr2_jax.compression.cache import fill_cache
from gr2_jax.compression.rewriter import make_rewriter
from gr2_jax.compression.rules import compress_by_rules, prompt_rows
from gr2_jax.compression.soft_tokens import make_slots
from gr2_jax.files import write_json
from gr2_jax.runs.artifacts import load_catalogue, load_context, load_log, load_slates, prompt_style


def run(config, run, progress, stop):
  """Writes `VARIANT.jsonl` (every history's tokens and outcome), `report.json`, and what the trained variants need."""
  options, report = config.compressor, {}
  catalogue = load_catalogue(run)
  context, style = load_context(run, catalogue, load_log(run, catalogue)), prompt_style(run)
  slates = [slate for split in options.splits for slate in load_slates(run, catalogue, split)]
  for variant in options.variants:
    compress = _MAKERS[variant](run, context, style, progress, stop)
    with progress.task(f"compress: {variant}", len({slate.history for slate in slates}), "histories") as task:
      report[variant] = fill_cache(run, variant, compress, slates, context, style, batch_size=options.batch_size, task=task, stop=stop)
    of = report[variant]
    progress.console.print(
      f"  {variant}: {of['compressed_tokens']:.1f} of {of['original_tokens']:.1f} tokens a history, "
      + ", ".join(f"{outcome.replace('_', ' ')} {count:,}" for outcome, count in of["outcomes"].items()),
      highlight=False,
    )
  write_json(run.path("compress", "report.json"), report)


def _make_rules(run, context, style, progress, stop, categories):
  """Variant B, and the baseline of semantic IDs alone."""

  def compress(slates):
    rows = [prompt_rows(slate, context, style) for slate in slates]
    budget = run.config.compressor.budget
    tokens = [compress_by_rules(of, context, style, budget=budget, categories=categories) for of in rows]
    return [(of, "ok" if of else "no_history") for of in tokens]

  return compress


_MAKERS = {
  "sids": functools.partial(_make_rules, categories=False),
  "rules": functools.partial(_make_rules, categories=True),
  "rewriter": make_rewriter,
  "slots": make_slots,
}
