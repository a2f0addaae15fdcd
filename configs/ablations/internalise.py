"""Whether reasoning can be learnt and then left out: direct policies by seven routes, three seeds.

    python -m experiments.sweep --config=configs/ablations/internalise.py --workdir=runs/internalise

Hardware: 2 CPU cores; a seed's stages up to RL are shared by all variants. `seed=N` is another market with other draws; `tiny` is for
tests.

GR2 gives its RL policy a second pass of RL in which it answers directly, and reports that on reasoning-hard slates it then ranks as well as
with reasoning. From the RL policy against from the mid-trained model, at the same steps and the same reward, is the test that it is the
reasoning which was internalised; the others ask whether a cheaper route gets as far: SFT on the RL policy's final answers, distillation of
what the policy would answer after its own reasoning, and the one-pass scores trained listwise on labels.

Each run's card has all orders, on all slates and on the reasoning-hard ones; COMPARISONS pairs them across variants.

Measured, seed 0 alone, 40 steps, 1,000 test slates, R@1 and N@3 with paired differences: upstream order .266 and .471, RL policy with its
reasoning .329 and .540. From the RL policy .292 and .474: above from the mid-trained model (.197, .366) by .095 [.062, .126] and .108
[.078, .138], below its own reasoning by .037 [.005, .071] and .066 [.041, .091]. Sorted by its one-pass scores, .298 and .498; trained for
them, .293 and .504. The SFT policy, asked for a direct answer that it was never taught, has .099 and .325: so hard slates are chosen by SFT
without reasoning instead. What is left of the gap after more steps is not known.
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
TEACHER = {"model.preset": "micro", "direct.steps": 0, "sft.without_reasoning": False}
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
  config.direct.steps = 1 if args.tiny else 60
  if not args.tiny:
    config.direct.update({"prompts": 64, "max_slates": 4000})
    # Three times that of `rl`: an empty think block is new to the policy, and the mid-trained model has everything to learn.
    config.direct.optimizer.learning_rate = 1e-3
  return config
