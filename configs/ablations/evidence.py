"""Purpose: what carries a scored policy: its facts, their codes, the mid-trained model's score, whom it learns from, a reasoning before it.
Paper: no figure; the table of facts is this project's own.
Expected: N@3 of the direct policy against `whole`: -.004 [-.013, .006] with nineteen facts, +.002 [-.007, .011] without the mid-trained
  model's score, +.009 [.001, .018] with one bin (95 % intervals, seed 0).
Hardware: 2 CPU cores, about an hour.
Command: python -m experiments.sweep --config=configs/ablations/evidence.py --workdir=runs/evidence
Measured: docs/results/evidence.md

One part changed at a time, three seeds, which share their stages up to the change. `seed=N`: another market with other draws; `tiny`: for
tests.
"""

from configs import quickstart
from experiments.flags import parse_arg
from gr2_jax.evidence.facts import BASIC_FACTS, FACTS, LM_SCORE

CHANGES = {
  "nineteen_facts": {"evidence.facts": BASIC_FACTS},
  "without_lm_score": {"evidence.facts": tuple(name for name in FACTS if name != LM_SCORE)},
  "one_bin": {"evidence.bins": 1},
  "labels_alone": {"direct.targets": "label"},
  "tree_alone": {"direct.targets": "tree"},
}
VARIANTS = {"whole": {}} | CHANGES | {"reasoned": quickstart.REASONED | {"direct.enabled": False}}
SEEDS = (0, 1, 2)
COMPARISONS = {
  "The direct policy with one part changed": [(f"{variant}/direct", "whole/direct") for variant in CHANGES],
  "Against the tree on the very same facts": [(f"{variant}/direct", f"{variant}/lambdamart_all") for variant in ("whole", *CHANGES)],
  "After a reasoning against at once": [("reasoned/sft", "whole/sft"), ("reasoned/policy", "whole/policy")],
  "RL against the SFT policy that it starts from": [(f"{variant}/policy", f"{variant}/sft") for variant in ("whole", "reasoned")],
}


def get_variants(arg=None):
  """VARIANTS, in `tiny` with its own few steps of RL after reasonings as well."""
  return VARIANTS | ({"reasoned": {"prompt.direct": False, "direct.enabled": False}} if _read(arg).tiny else {})


def _read(arg):
  return parse_arg(arg, tiny=False, seed=0)


def get_config(arg=None):
  args = _read(arg)
  config = quickstart.get_config(f"at_once,seed={args.seed},tiny={args.tiny}")
  config.name = "evidence"
  config.rl.control = False
  return config
