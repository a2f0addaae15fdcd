"""Claim: a policy that scores candidates from packed evidence beats its upstream order and, learning directly, LambdaMART on 19 facts.
Paper: its line on industrial logs ranks R@1 +18.7 %, R@3 +7.1 %, N@3 +9.6 % above the production order.
Expected: the direct policy over LambdaMART on 19 facts N@3 +.012 [.005, .018], on the same 38 facts +.002 [-.003, .008]; RL over its SFT,
  after a reasoning, R@1 +.042 [.027, .057] (95 % intervals, seeds 0 to 2 together).
Hardware: 2 CPU cores, half an hour (estimated).
Command: python -m experiments.sweep --config=configs/ablations/main.py --workdir=runs/main
Measured: docs/results/main.md

Both lines of `quickstart.py`, after a reasoning and at once, on three markets, which share their stages up to SFT. `seed=N`: another market
with other draws; `tiny`: for tests.
"""

from configs import quickstart
from experiments.flags import parse_arg

VARIANTS = {"reasoned": quickstart.REASONED, "at_once": {}}
SEEDS = (0, 1, 2)
COMPARISONS = {
  "Policies against the order that they were given, trees and the mid-trained model": [
    (f"reasoned/{ranker}", f"reasoned/{base}")
    for ranker, base in (
      *(("direct", base) for base in ("upstream", "lambdamart", "lambdamart_all", "midtrain")),
      *(("policy", base) for base in ("lambdamart", "lambdamart_all")),
    )
  ],
  "RL against the SFT policy that it starts from": [(f"{variant}/policy", f"{variant}/sft") for variant in VARIANTS],
  "RL against its control, which is told the same labels": [(f"{variant}/policy", f"{variant}/rl_control") for variant in VARIANTS],
  "After a reasoning against at once": [(f"reasoned/{ranker}", f"at_once/{ranker}") for ranker in ("sft", "policy")],
}


def get_variants(arg=None):
  """VARIANTS, in `tiny` with its own few steps of RL after reasonings as well."""
  return VARIANTS | ({"reasoned": {"prompt.direct": False}} if _read(arg).tiny else {})


def _read(arg):
  return parse_arg(arg, tiny=False, seed=0)


def get_config(arg=None):
  args = _read(arg)
  config = quickstart.get_config(f"at_once,seed={args.seed},tiny={args.tiny}")
  config.name = "main"
  return config
