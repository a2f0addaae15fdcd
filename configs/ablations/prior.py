"""Claim: on-policy distillation (OPD) keeps a teacher's gain; RL after it beats RL after SFT on traces, unless the student is very small.
Paper: a 1.7B student keeps 82 % of its 32B teacher's gain; v1 on Beauty: R@1 .2892 upstream, .2784 by SFT on accepted traces.
Expected: OPD alone keeps 100 % [93, 107] of the teacher's R@1 gain in `micro`, 63 % [49, 77] in `test`; RL after it against RL after SFT
  R@1 +5 % [2, 10] in `micro`, -2 % [-7, 5] in `test` (95 % intervals, seeds 0 to 2).
Hardware: 2 CPU cores, an hour to an hour and a half; `beauty` about half a day, not run yet.
Command: python -m experiments.sweep --config=configs/ablations/prior.py --workdir=runs/prior
Measured: docs/results/prior.md

`beauty`: the same on Amazon Beauty, with `--config.data.source=FOLDER`. `seed=N`: another market with other draws; `tiny`: for tests.
"""

from configs import amazon, small_market
from experiments.flags import parse_arg

STUDENTS = ("test", "micro")
TEACHER = {"model.preset": "tiny", "sft.steps": 400}  # it learns in half the steps
OPD = {"rl.init": "opd", "opd.teacher_run": "run:teacher"}
PRIORS = {
  "none": {"rl.init": "midtrain"},
  "sft_targeted": {"traces.sampling": "targeted"},
  "sft_rejection": {"traces.sampling": "rejection"},
  "opd": {**OPD, "opd.reward_weight": 0.0},
  # At the default β, .5 to .05, the reward's noise is the louder part from the start.
  "opd_reward": {**OPD, "opd.reward_weight": 1.0, "opd.distillation.beta": 4.0, "opd.distillation.beta_end": 1.0},
}
VARIANTS = {"teacher": TEACHER} | {
  f"{prior}_{size}": {"model.preset": size, **changes} for size in STUDENTS for prior, changes in PRIORS.items()
}
SEEDS = (0, 1, 2)


def _read(arg):
  return parse_arg(arg, beauty=False, tiny=False, seed=0)


def _each(*pairs):
  """The pairs of orders for every student size, which is written %s."""
  return [tuple(name.replace("%s", size) for name in pair) for size in STUDENTS for pair in pairs]


COMPARISONS = {
  "What SFT and OPD alone do to the input order": _each(
    *((f"{prior}_%s/{prior.partition('_')[0]}", f"{prior}_%s/upstream") for prior in PRIORS if prior != "none")
  ),
  "RL after a prior against RL alone": _each(*((f"{prior}_%s/policy", "none_%s/policy") for prior in PRIORS if prior != "none")),
  "OPD against SFT on rejection-sampled traces, both followed by RL": _each(
    ("opd_%s/policy", "sft_rejection_%s/policy"), ("opd_reward_%s/policy", "sft_rejection_%s/policy")
  ),
  "OPD alone against SFT alone": _each(("opd_%s/opd", "sft_rejection_%s/sft"), ("opd_reward_%s/opd", "sft_rejection_%s/sft")),
  "What the reward adds to OPD": _each(("opd_reward_%s/opd", "opd_%s/opd"), ("opd_reward_%s/policy", "opd_%s/policy")),
}
SHARES = {
  "teacher/policy": [
    name
    for size in STUDENTS
    for name in (
      *(f"{prior}_{size}/{prior.partition('_')[0]}" for prior in PRIORS if prior != "none"),
      *(f"{prior}_{size}/policy" for prior in PRIORS),
    )
  ]
}


def get_variants(arg=None):
  """VARIANTS, in `tiny` with a teacher whose SFT is as short as that of its students."""
  return VARIANTS | ({"teacher": {"model.preset": "tiny"}} if _read(arg).tiny else {})


def get_config(arg=None):
  args = _read(arg)
  if args.beauty:
    config = amazon.get_config(f"beauty,small=true,written=true,seed={args.seed},tiny={args.tiny}")
    config.name = "prior_beauty"
    return config
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "prior"
  return config
