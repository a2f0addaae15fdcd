"""Whether reasoning can be learnt and then left out: direct policies by seven routes, three seeds.

    python -m experiments.sweep --config=configs/ablations/internalise.py --workdir=runs/internalise

Hardware: 2 CPU cores, about an hour; a seed's stages up to RL are shared by all variants. `seed=N` is another market with other draws;
`tiny` is for tests.

GR2 gives its RL policy a second pass of RL in which it answers directly, and reports that on reasoning-hard slates it then ranks a little
better at the top than with reasoning (R@1 .301 against .297). From the RL policy against from the mid-trained model, at the same steps and
the same reward, is the test that it is the reasoning which was internalised; the others ask whether a cheaper route gets as far: SFT on the
RL policy's final answers, distillation of what the policy would answer after its own reasoning, and the one-pass scores trained listwise on
labels. Reasoning-hard are slates whose target SFT on the answers alone does not put first.

Measured on seeds 0 and 1, 2,000 test slates of six; relative differences in pairs, 95 %:
  - From the RL policy R@1 .377, N@3 .599; from the mid-trained model, which these steps do not teach to read, .207 and .339; from SFT .386
    and .608, the difference to RL within its interval (-2 % [-7, 3], -1 % [-4, 1]).
  - Against its own reasoning (.352, .613): R@1 +7 % [1, 13], N@3 -2 % [-5, 1]. Sorted by the policy's one-pass scores N@3 is .607.
  - Cheaper routes against it: SFT on the RL policy's answers R@1 +4 % [-1, 9], N@3 +4 % [2, 7]; its own reasoning distilled
    -10 % [-15, -5], +1 % [-1, 4]; one-pass scores -3 % [-8, 2], +3 % [0, 5].
  - On the 1,107 reasoning-hard slates the second pass is better at the top than the RL policy's reasoning, as reported: R@1 .257 against
    .181, difference .077 [.053, .100], N@3 .013 [-.011, .036]; and than the same pass from SFT: .089 [.068, .111], .052 [.032, .071].
  - SFT on the answers alone has R@1 .447 and N@3 .688 over all slates, above every policy that reasons: with a model this small reasoning
    does not pay, so nothing here says what it is worth.
  - OPD from the mid-trained model did not get over its plateau under this smaller teacher (R@1 .138 after 1,000 steps), nor what followed.
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
