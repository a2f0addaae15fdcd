"""Ranking quality against layers kept, as cut and after recovery by distillation from the full policy; three seeds.

    python -m experiments.sweep --config=configs/ablations/pruning.py --workdir=runs/pruning

Hardware: 2 CPU cores, about half an hour; a seed's stages up to RL are shared by all variants. `seed=N` is another market with other draws;
`tiny` is for tests.

Layers go by block influence (ShortGPT, arXiv 2403.03853): those that turn the hidden state least, on prompts of training slates. The pruned
policy then answers, and the full one scores its tokens: on-policy distillation without a reward. The first variant keeps all layers.

Measured on seeds 0 and 1, 2,000 test slates of six; relative differences to the full policy of three layers (R@1 .392, N@3 .658; upstream
.317, .561) in pairs, 95 %:
  - Two layers: as cut R@1 -24 % [-29, -18], N@3 -15 % [-17, -13]; after 200 steps of recovery, a minute and a half on one core,
    +3 % [0, 6] and +1 % [0, 2]: nothing is lost.
  - One layer: as cut -70 % [-74, -66], -56 % [-58, -53]; recovered -51 % [-56, -46], -23 % [-25, -21]. One layer cannot look something up
    and then use it.
"""

from configs import small_market
from experiments.flags import parse_arg

VARIANTS = {
  f"{layers}_layers_{recovery}": {"prune.layers": layers, "prune.steps": steps}
  for layers, recoveries in {3: {"cut": 0}, 2: {"cut": 0, "recovered": 200}, 1: {"cut": 0, "recovered": 200}}.items()
  for recovery, steps in recoveries.items()
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
  config.prune.enabled = True
  if args.tiny:
    config.prune.update({"layers": 1, "steps": 1})
  else:
    config.model.preset = "micro"  # three layers
    config.prune.update({"layers": 3, "slates": 256, "prompts": 8})
    config.prune.optimizer.update({"rule": "muon", "learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20})
  return config
