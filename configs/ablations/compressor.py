"""How far a history can be shortened before the ranking suffers: rules, a trained rewriter and soft slots at three budgets, two seeds.

    python -m experiments.sweep --config=configs/ablations/compressor.py --workdir=runs/compressor

Hardware: 2 CPU cores, about three hours in all (estimated, not measured). `seed=N` is another market with other draws; `tiny` is for tests.

GR2 reports over 80 % fewer input tokens at equal or slightly better R@3 and N@3. For that to mean anything the full input is verbose, as
GR2's: every item of a history of up to 24 with its semantic ID, title, brand, category path and price, some 25 tokens each. The policy is
trained on such prompts alone and then frozen. What stands in its prompts instead, at each budget (tokens of the history):

  sids      semantic IDs alone of as many of the latest items as fit: the natural strong baseline after mid-training
  rules     the same with leaf categories, repeats merged (variant B)
  rewriter  a model of the policy's size, fine-tuned on the rules and then by GRPO with the policy as the judge (variant A)
  slots     one vector for each item from an encoder that is trained against the policy (variant C)

Each variant's table in sweep.md has tokens kept, R@3 and N@3 with paired intervals against full input, and prefill time. All budgets
share the stages before `compress`. `--config.compressor.rewriter.judge=chat` asks an OpenAI-compatible endpoint instead of the policy.

The ablation itself has not been run. Measured is the quickstart's policy (1 M parameters, seed 0, histories of 25 tokens, which are codes
alone already) at a budget of 12, on 256 test slates, against full histories: sids R@3 -3 % [-8, 1], N@3 -5 % [-10, 0]; rules -5 % [-10, 0],
-5 % [-10, 0]; slots after 2 steps of training -19 % [-26, -10], -23 % [-31, -15], after 80 steps -8 % [-16, -1], -14 % [-21, -6].
"""

from configs import small_market
from experiments.flags import parse_arg

BUDGETS = (12, 24)
# The last item alone: how much there is to lose. 48 tokens hold all items by their rules, so nothing has to be chosen there.
VARIANTS = {
  "budget_3": {"compressor.budget": 3, "compressor.variants": ("sids",)},
  **{f"budget_{budget}": {"compressor.budget": budget} for budget in BUDGETS},
  "budget_48": {"compressor.budget": 48, "compressor.variants": ("sids", "rules")},
}
SEEDS = (0, 1)


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "compressor"
  config.data.market.update({"min_history": 6, "max_history": 10})
  config.prompt.update({"history_fields": ("title", "category"), "max_history": 10, "max_prompt_tokens": 416})
  config.sft.update({"row_length": 448, "compressed_share": 0.7})
  config.compressor.update({"variants": ("sids", "rules", "rewriter", "slots"), "budget": BUDGETS[0]})
  config.compressor.rewriter.warmup.row_length = 448
  if not args.tiny:
    config.sft.steps = 900
    # Copying is what the rewriter has to learn first.
    config.compressor.rewriter.warmup.steps = 600
    config.compressor.rewriter.warmup.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
    config.compressor.rewriter.optimizer.learning_rate = 3e-4
  return config
