"""Which reward keeps a policy from copying the order it is given, and what that costs: five rewards, two presentations, three seeds.

    python -m experiments.sweep --config=configs/ablations/reward_hacking.py --workdir=runs/reward_hacking

Hardware: 2 CPU cores, 35 minutes in all on a shared machine. `seed=N` is another market with other draws; `tiny` is for tests.

GR2 reports that a policy which earns rank and format credit without a condition learns to keep the input order, and cures it by Eq 7; a
reader found the hole: swap two tail items and keep the credit. It shows where copying is the nearest gain: RL starts, with fast steps, from
a small model that has begun to read what the prompt says of a candidate (how often it followed the last item) but does not yet beat the
upstream order by it. Slots are the names, so that a copy is the same few tokens in every answer.

Rewards are normalised within a group, so what is the same for a whole group teaches nothing: the naive alpha where all answers are valid,
and the upstream order's own reward that the relative reward subtracts. What is left of a condition is its 0 for copies (Eq 7), and alpha
for answers that beat the upstream order or keep a best one (v1, relative). Only the improving reward pays nothing for a near copy itself.

Measured on seeds 1 to 3 (settings were chosen on seed 0), 3,000 test slates; upstream R@1 .315, N@3 .549; all lifts in pairs, 95 %:
  - Shown upstream, copies grow from 5 to 33 % of the sampled answers under the naive reward, and half of the greedy answers are copies.
    R@1 rises all the same (+32 % [26, 37]), but on position: on shuffled slates it is .313, no better than upstream.
  - Eq 7 has no copies (0.4 %), and 50 % of its greedy answers are a copy but for one swap: the hole. The relative reward closes it for a
    single answer (a swap of the tail earns 0), not in training: 44 % copies, 67 % with one swap, for the reason above.
  - The improving reward closes it (0.1 % within a swap of a copy), at a price: slots it gambles on cost N@3 8 % [5, 11].
  - Shuffled presentation cures all of them: 1 % copies and 8 to 13 % within a swap among sampled answers, R@1 +11 to +20 %, N@3 +6 to +9 %,
    R@1 of .33 to .36 on shuffled slates too. Best at the top is improving and shuffled: R@1 +20 % [14, 26], N@3 +7 % [4, 10].
From a prior that had barely learnt to answer every reward but Eq 7 ended in copies (95 % and more, one seed): no reward helps a policy that
can do nothing else.
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
