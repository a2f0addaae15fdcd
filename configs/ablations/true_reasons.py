"""Purpose: whether the facts in reasonings are true, and RL keeps them so: free reasonings, truth rewarded, and truth by construction.
Paper: Diffusion-GR2 has GR2's reasonings on Beauty judged, of 5: grounding in the history 4.50, consistency 4.94.
Expected: 100 % of stated facts true under the constraint, before and after RL; free, after RL, 42.9 % [42.1, 43.7], with truth rewarded
  52.1 % [51.3, 53.0] (95 % intervals, seeds 0 to 2 together).
Hardware: 2 CPU cores, 35 minutes beside other work.
Command: python -m experiments.sweep --config=configs/ablations/true_reasons.py --workdir=runs/true_reasons
Measured: docs/results/true_reasons.md

The reasoned line of `quickstart.py:teacher=tree`, three seeds; the variants share their stages up to SFT. Each run's card has the table, of
SFT (before RL), RL and its control by supervision. `seed=N`: another market with other draws; `tiny`: for tests.
"""

from configs import quickstart
from experiments.flags import parse_arg

FREE = {"decoding.constraint": "none", "rl.named_weight": 0.0}
VARIANTS = {
  "free": FREE,
  "truth_rewarded": FREE | {"rl.truth_weight": 0.5, "rl.named_weight": 0.5},
  "true_by_construction": {"rl.named_weight": 0.0},
  "true_and_name_rewarded": {},
}
SEEDS = (0, 1, 2)
COMPARISONS = {
  "RL against the SFT policy that it starts from": [(f"{variant}/policy", f"{variant}/sft") for variant in VARIANTS],
  "What truth and names cost": [(f"{variant}/policy", "free/policy") for variant in list(VARIANTS)[1:]],
}


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = quickstart.get_config(f"teacher=tree,seed={args.seed},tiny={args.tiny}")
  config.name = "true_reasons"
  config.direct.enabled = False
  return config
