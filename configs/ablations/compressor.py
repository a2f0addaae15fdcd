"""Claim: over 80 % of a prompt's tokens can go at little loss: by semantic IDs alone, rules, a trained rewriter, or soft tokens.
Paper: over 80 % fewer input tokens at equal or slightly better R@3 and N@3.
Expected: against full prompts, at budget 12: soft tokens 84 % fewer prompt tokens, R@3 -1.4 % [-3.4, .6], N@3 -1.3 % [-3.7, 1.1]; semantic
  IDs alone 83 % fewer, R@3 -2.4 % [-4.7, 0.0], N@3 -1.0 % [-3.9, 2.0] (95 % intervals, seed 0).
Hardware: 2 CPU cores, about half an hour a seed.
Command: python -m experiments.sweep --config=configs/ablations/compressor.py --workdir=runs/compressor
Measured: docs/results/compressor.md

Four budgets (tokens of a history), two seeds; all budgets share the stages before `compress`. `seed=N`: another market with other draws;
`tiny`: for tests.
"""

from configs import small_market
from experiments.flags import parse_arg

BUDGETS = (12, 24)
# The last item alone: how much there is to lose. 48 tokens hold all items by their rules, so nothing has to be chosen there.
VARIANTS = {
  "budget_3": {"compress.budget": 3, "compress.variants": ("sids",)},
  **{f"budget_{budget}": {"compress.budget": budget} for budget in BUDGETS},
  "budget_48": {"compress.budget": 48, "compress.variants": ("sids", "rules")},
}
SEEDS = (0, 1)


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "compressor"
  config.data.market.update({"min_history": 6, "max_history": 10})
  config.prompt.update({"history_fields": ("title", "category"), "max_history": 10, "max_prompt_tokens": 416})
  config.sft.update({"row_length": 512 if args.tiny else 448, "compressed_share": 0.7})  # the tiny market's slates are longer
  config.compress.update({"variants": ("sids", "rules", "rewriter", "soft_tokens"), "budget": BUDGETS[0]})
  config.compress.rewriter.warmup.row_length = 448
  if not args.tiny:
    config.sft.steps = 900
    # Copying is what the rewriter has to learn first.
    config.compress.rewriter.warmup.steps = 600
    config.compress.rewriter.warmup.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
    config.compress.rewriter.optimizer.learning_rate = 3e-4
  return config
