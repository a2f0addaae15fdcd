"""How far a history can be shortened before the ranking suffers: rules, a trained rewriter and soft slots at several budgets, two seeds.

    python -m experiments.sweep --config=configs/ablations/compressor.py --workdir=runs/compressor

Hardware: 2 CPU cores, about half an hour a seed. `seed=N` is another market with other draws; `tiny` is for tests.

GR2 reports over 80 % fewer input tokens at equal or slightly better R@3 and N@3. For that to mean anything the full input is verbose, as
GR2's: each of up to ten items of a history with its semantic ID, title and category, some 29 tokens each. What stands in the prompts
instead, at each budget (tokens of the history):

  sids      semantic IDs alone of as many of the latest items as fit: the natural strong baseline after mid-training
  rules     the same with leaf categories, repeats merged (variant B)
  rewriter  a model of the policy's size, fine-tuned on the rules and then by GRPO with the policy as the judge (variant A)
  slots     one vector for each item from an encoder that is trained against the policy (variant C)

Each variant's table in sweep.md has tokens kept, R@3 and N@3 with paired intervals against full input, and prefill time. All budgets
share the stages before `compress`. `--config.compress.rewriter.judge=chat` asks an OpenAI-compatible endpoint instead of the policy.

A model this small does not learn to read candidates behind 300 tokens of history, in either order (1,000 steps: the loss of the answers
stays where it began). It does when most of its examples have histories that the rules shortened to a random number of items
(`sft.compressed_share`), and then reads both. The report does not say whether its ranker was trained on compressed input.

Measured on seed 0 alone, 1,000 test slates of six, policy R@3 .802 and N@3 .611 on full prompts of 331 tokens (upstream .730, .559);
differences to full prompts in pairs, 95 %:
  budget                     prompt tokens     R@3                N@3
  3   sids: the last item    47,  86 % fewer   -3.2 % [-5.6, -.9]   -1.0 % [-4.0, 1.9]
  12  sids                   56,  83 %         -2.4 % [-4.7, 0.0]   -1.0 % [-3.9, 2.0]
      rules                  56,  83 %         -2.4 % [-4.7, 0.0]   -1.0 % [-3.9, 1.9]
      rewriter               56,  83 %         -2.5 % [-4.8, -.1]   -1.1 % [-4.0, 1.8]
      slots                  52,  84 %         -1.4 % [-3.4, .6]    -1.3 % [-3.7, 1.1]
  24  sids                   66,  80 %         -1.9 % [-4.1, .3]    -.2 % [-2.9, 2.6]
      rules                  67,  80 %         -2.7 % [-5.0, -.5]   -1.1 % [-4.0, 1.8]
      rewriter               67,  80 %         -2.7 % [-5.0, -.5]   -.7 % [-3.5, 2.1]
  48  sids                   68,  79 %         -1.6 % [-3.8, .6]    +.1 % [-2.8, 2.9]
      rules                  79,  76 %         -2.5 % [-4.8, -.2]   -.4 % [-3.3, 2.6]
With slots, and with the semantic IDs of eight items, 80 % and more of the tokens go and both metrics stay within the interval. But there
is little to lose: most of what the policy knows stands beside the candidates, and the last item alone costs 3 % of R@3.
Served one request at a time on an idle machine (`experiments.latency` on the run of budget 24, 60 requests): median 2.33 ms with full
histories (R@1 .342 [.313, .372]), 1.36 with slots (.347), 1.39 rewritten (.362), 1.57 with semantic IDs alone (.359).
The rewriter copies semantic IDs whole by construction (without that a model this small gets 0 to 9 % of its texts right, and GRPO no
reward to learn from). 60 steps of GRPO do not move the judge's reward (.43 to .42 at budget 12): its total rises with the weight of length.
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
  config.sft.update({"row_length": 448, "compressed_share": 0.7})
  config.compress.update({"variants": ("sids", "rules", "rewriter", "soft_tokens"), "budget": BUDGETS[0]})
  config.compress.rewriter.warmup.row_length = 448
  if not args.tiny:
    config.sft.steps = 900
    # Copying is what the rewriter has to learn first.
    config.compress.rewriter.warmup.steps = 600
    config.compress.rewriter.warmup.optimizer.update({"rule": "muon", "learning_rate": 3e-3})
    config.compress.rewriter.optimizer.learning_rate = 3e-4
  return config
