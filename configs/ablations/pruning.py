"""Claim: a layer of three can go at no loss, once the full policy has taught the pruned one on its own answers; two of three cannot.
Paper: prunes depth and recovers by distillation; how many layers and at which loss we do not know.
Expected: R@1 against the full policy: with two layers -24 % [-29, -18] as cut, +3 % [0, 6] recovered; with one -70 % [-74, -66] and -51 %
  [-56, -46] (95 % intervals, seeds 0 and 1).
Hardware: 2 CPU cores, about half an hour.
Command: python -m experiments.sweep --config=configs/ablations/pruning.py --workdir=runs/pruning
Measured: docs/results/pruning.md

Layers go by block influence (ShortGPT, arXiv 2403.03853). Three seeds, which share their stages up to RL. `seed=N`: another market with
other draws; `tiny`: for tests.
"""

from configs import small_market
from experiments.flags import parse_arg

VARIANTS = {
  "3_layers_cut": {"prune.layers": 3, "prune.steps": 0},
  "2_layers_cut": {"prune.layers": 2, "prune.steps": 0},
  "2_layers_recovered": {"prune.layers": 2},
  "1_layers_cut": {"prune.layers": 1, "prune.steps": 0},
  "1_layers_recovered": {"prune.layers": 1},
}
SEEDS = (0, 1, 2)
COMPARISONS = {
  "The pruned policy against the full one": [(f"{variant}/pruned", f"{variant}/policy") for variant in VARIANTS],
  "What recovery regains": [(f"{layers}_layers_recovered/pruned", f"{layers}_layers_cut/pruned") for layers in (2, 1)],
}


def get_config(arg=None):
  args = parse_arg(arg, tiny=False, seed=0)
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "pruning"
  config.model.preset = "micro"  # three layers
  config.prune.update({"enabled": True, "steps": 1 if args.tiny else 200})
  if not args.tiny:
    config.prune.update({"layers": 3, "slates": 256, "prompts": 8})
    config.prune.optimizer.update({"rule": "muon", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20})
  return config
