"""Claim: reasoning can be learnt and then left out: a second pass of RL answers directly, and better at the top than with its reasoning.
Paper: on reasoning-hard slates R@1 .3012 directly, .2968 with reasoning.
Expected: on reasoning-hard slates R@1 .257 directly, .181 with reasoning, difference .077 [.053, .100]; over all slates R@1 .377, by the
  same pass from the mid-trained model .207 (95 % interval, seeds 0 and 1).
Hardware: 2 CPU cores, about an hour.
Command: python -m experiments.sweep --config=configs/ablations/internalise.py --workdir=runs/internalise
Measured: docs/results/internalise.md

Direct policies by seven routes, three seeds, which share their stages up to RL. `seed=N`: another market with other draws; `tiny`: for
tests.
"""

from configs import small_market
from experiments.flags import parse_arg

ROUTES = {
  "from_midtrain": {"direct.init": "midtrain"},
  "from_sft": {"direct.init": "sft"},
  "from_opd": {"rl.init": "opd", "opd.teacher_run": "run:teacher", "direct.init": "opd"},
  "from_rl": {"direct.init": "rl"},
  "answers_of_rl": {"direct.init": "rl", "direct.method": "sft"},
  "own_reasoning": {"direct.init": "rl", "direct.method": "distil"},
  "one_pass": {"direct.init": "rl", "direct.method": "scores"},
}
# The larger model that OPD learns from; it answers with its reasoning.
TEACHER = {"model.preset": "micro", "direct.enabled": False, "sft.without_reasoning": False}
VARIANTS = {"teacher": TEACHER} | ROUTES
SEEDS = (0, 1, 2)
COMPARISONS = {
  "A second pass from the RL policy against the same pass from where there is no reasoning": [
    ("from_rl/direct", "from_midtrain/direct"),
    ("from_rl/direct", "from_sft/direct"),
    ("from_rl/direct", "from_opd/direct"),
  ],
  "Cheaper routes against a second pass of RL": [
    ("answers_of_rl/direct", "from_rl/direct"),
    ("own_reasoning/direct", "from_rl/direct"),
    ("one_pass/direct_scores", "from_rl/direct"),
  ],
  "Without reasoning against with it": [(f"{variant}/direct", f"{variant}/policy") for variant in ROUTES],
  "One pass against decoded answers": [(f"{variant}/direct_scores", f"{variant}/direct") for variant in ROUTES],
}


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "internalise"
  config.sft.without_reasoning = True
  config.direct.update({"enabled": True, "steps": 1 if args.tiny else 60})
  if not args.tiny:
    config.direct.update({"prompts": 64, "max_slates": 4000})
    # Three times that of `rl`: an empty think block is new to the policy, and the mid-trained model has everything to learn.
    config.direct.optimizer.learning_rate = 1e-3
  return config
