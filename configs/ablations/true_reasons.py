"""Purpose: whether the facts in reasonings are true, and RL keeps them so: free reasonings, truth rewarded, and truth by construction.
Paper: Diffusion-GR2 has GR2's reasonings on Beauty judged, of 5: grounding in the history 4.50, consistency 4.94.
Expected: the sweep is not measured; true by construction and the name rewarded, after RL, seed 0: facts true 100 % [100, 100], the answer's
  first named 55.7 % [51.6, 60.2] (95 % intervals).
Hardware: 2 CPU cores; not timed.
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
