"""Which reward keeps a policy from copying the order it is given, and what that costs: four rewards, two presentations, three seeds.

    python -m experiments.sweep --config=configs/ablations/reward_hacking.py --workdir=runs/reward_hacking

Hardware: 2 CPU cores, at most 90 minutes in all. `seed=N` is another market with other draws; `tiny` is for tests.

GR2 reports that a policy which earns rank and format credit without a condition learns to keep the input order, and cures it by Eq 7; a
reader found the hole: swap two tail items and keep the credit. It shows best where copying pays more than what the policy can do yet, so
RL starts from a weak prior, with fast steps: short slates, slots as names, a small model.

What to expect. Rewards are normalised within a group, so what is the same for a whole group teaches nothing: the naive alpha where all
answers are valid, and the upstream order's own reward that the relative reward subtracts. What is left of a condition is its 0 for copies
(Eq 7), and alpha for answers that beat the upstream order or keep a best one (v1, relative). A policy that knows nothing but positions
then does best by the copy itself (naive) or by a fixed order one or two swaps away from it (the others), and may end in the copy on its
way there. What the rates of copies and near copies miss of that, Kendall tau tells.

Measured, seed 0 alone, sampled answers in the last tenth of the steps, upstream presentation: copies 98 % (naive), 98 % (v1), 0 % (Eq 7),
95 % (relative); with those up to one swap 100, 100, 98, 96 %. Under shuffled presentation all have 0 % and 2 to 3 %, and R@1 stays below
the upstream order's: so weak a prior learns positions and nothing else.
"""

from configs import quickstart
from experiments.flags import parse_arg

# v1 ranks by the promotion of the target: its condition asks for R > 0, which Eq 5 gives to all but the worst order.
CONDITIONS = {
  "naive": {"rl.reward.rank": "promotion", "rl.reward.condition": "naive"},
  "v1": {"rl.reward.rank": "promotion", "rl.reward.condition": "v1"},
  "eq7": {"rl.reward.rank": "auc", "rl.reward.condition": "eq7"},
  "relative": {"rl.reward.rank": "auc", "rl.reward.condition": "relative"},
}
VARIANTS = {
  f"{condition}_{presentation}": {**changes, "rl.presentation": presentation}
  for presentation in ("upstream", "shuffled")
  for condition, changes in CONDITIONS.items()
}
SEEDS = (0, 1, 2)


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = quickstart.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "reward_hacking"
  if not args.tiny:
    weaken(config)
  return config


def weaken(config):
  """A short slate, a prior that has barely learnt to answer, and room for RL to go where the reward leads."""
  config.model.preset = "test"
  config.data.market.update({"num_items": 240, "slate_size": 6, "train_slates": 4000, "validation_slates": 200})
  config.tokenize.update({"num_candidates": 6})
  config.tokenize.rqvae.codebook_size = 16
  config.tokenize.training.epochs = 100
  config.midtrain.update({"steps": 60, "eval_users": 100})
  # Slots as names make a copy the same few tokens in every answer.
  config.prompt.update({"reference": "slot", "item_fields": (), "max_prompt_tokens": 128})
  config.traces.max_slates = 3000
  config.sft.update({"steps": 300, "batch_size": 16, "row_length": 224})
  # The length of an answer is not what is studied: it is limited, and not punished.
  config.rl.update({"steps": 200, "prompts": 64, "max_new_tokens": 16, "overlong_zone": 0})
  config.rl.reward.alpha = 0.2  # v1's for all, so that the conditions alone differ
  config.rl.optimizer.learning_rate = 3e-3
