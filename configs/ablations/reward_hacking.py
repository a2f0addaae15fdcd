"""Claim: shuffled presentation keeps a policy from copying its input order; a condition on the reward leaves a hole or costs quality.
Paper: a condition (Eq 7) keeps a policy from copying; no figure that we know of.
Expected: shown the upstream order, the naive reward ends in about a third of copies among the sampled answers, and R@1 +32 % [26, 37] of it
  is position; shown shuffled, every reward has 1 % of copies, and `improving` R@1 +20 % [14, 26], N@3 +7 % [4, 10] (95 % intervals).
Hardware: 2 CPU cores, 35 minutes.
Command: python -m experiments.sweep --config=configs/ablations/reward_hacking.py --workdir=runs/reward_hacking
Measured: docs/results/reward_hacking.md

Five rewards, two presentations, three seeds (1 to 3). `seed=N`: another market with other draws; `tiny`: for tests.
"""

from configs import small_market
from experiments.flags import parse_arg

# v1 ranks by the promotion of the target: its condition asks for R > 0, which Eq 5 gives to all but the worst order.
CONDITIONS = {
  "naive": {"rl.reward.rank": "promotion", "rl.reward.condition": "naive"},
  "v1": {"rl.reward.rank": "promotion", "rl.reward.condition": "v1"},
  "eq7": {"rl.reward.rank": "auc", "rl.reward.condition": "eq7"},
  "relative": {"rl.reward.rank": "auc", "rl.reward.condition": "relative"},
  "improving": {"rl.reward.rank": "auc", "rl.reward.condition": "improving"},
}
VARIANTS = {
  f"{condition}_{presentation}": {**changes, "rl.presentation": presentation}
  for presentation in ("upstream", "shuffled")
  for condition, changes in CONDITIONS.items()
}
SEEDS = (1, 2, 3)


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "reward_hacking"
  if not args.tiny:
    weaken(config)
  return config


def weaken(config):
  """A prior that has begun to read and not more, and room for RL to go where the reward leads."""
  # The loss of the answers begins to fall after 300 steps; at 1,200 the policy reads so well that no reward leads it astray.
  config.sft.steps = 600
  # The length of an answer is not what is studied: it is limited, and not punished.
  # A policy that only copies gives no signal, and that is a result here, no reason to stop.
  config.decoding.max_new_tokens = 16
  config.rl.update({"steps": 150, "prompts": 64, "overlong_zone": 0, "max_skips": 150})
  config.rl.reward.alpha = 0.2  # v1's for all, so that the conditions alone differ
  config.rl.optimizer.learning_rate = 2e-3
