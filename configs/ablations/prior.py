"""What RL should start from: nothing, SFT on targeted or rejection-sampled traces, or on-policy distillation, with and without a reward.

    python -m experiments.sweep --config=configs/ablations/prior.py --workdir=runs/prior
    python -m experiments.sweep --config=configs/ablations/prior.py:beauty --config.data.source=FOLDER --workdir=runs/prior_beauty

Hardware: 2 CPU cores, an hour to an hour and a half (91 minutes of stages, one core each); with `beauty` about half a day, not run yet.
`seed=N` is another market with other draws; `tiny` is for tests.

Five priors, two student sizes, each followed by the same RL. The teacher comes first: a larger model after SFT and RL, one for each seed.
GR2 reports that a 1.7B student keeps 82 % of the gain of its 32B teacher by OPD, that SFT on traces falls below the order it is given
(v1 on Beauty: R@1 .289 upstream, .278 after rejection, .201 after targeted sampling), that RL after OPD beats RL alone, and that rejection
sampling loses the hard slates. One thing differs: traces come from the scripted teacher, which reads the catalogue's counts, and the
teacher of OPD has itself learnt from such traces.

Measured on seeds 0 to 2, 3,000 test slates of six, upstream R@1 .320, N@3 .559; differences in pairs, 95 %. `micro` has three layers of
width 64, `test` two of 32, the teacher (R@1 .416, N@3 .662) four of 128:
  - OPD alone, from the mid-trained model, keeps 100 % [93, 107] of the teacher's R@1 gain and 102 % [98, 106] of its N@3 gain in `micro`,
    63 % [49, 77] and 58 % [49, 67] in `test`; with the reward 104 % [97, 111] and 105 % [101, 109], 89 % [77, 103] and 61 % [52, 70].
  - SFT does not fall below the input order here: R@1 +36 % [29, 44] after rejection and +38 % [33, 44] after targeted sampling in `micro`,
    +26 % [20, 33] and +28 % [23, 34] in `test`. Its teacher is not OPD's, and better: it reads counts.
  - RL after OPD beats RL after SFT in `micro`: R@1 +5 % [2, 10], N@3 +1 % [0, 3]; with the reward +6 % [3, 10], +2 % [0, 3]. In `test` R@1
    -2 % [-7, 5], N@3 -4 % [-6, -2]. RL alone learns nothing in 40 steps: R@1 .090 and .179.
  - RL adds to OPD in `micro` (R@1 +4 % [1, 7]) and takes from SFT (-6 % [-9, -3] after rejection, -8 % [-11, -5] after targeted sampling).
    Sampled at temperature 1 every policy gains (R@1 .33 to .38, N@3 .58 to .63, one run): 40 steps sharpen, and move the greedy answer of
    a prior that has learnt to read to a worse one.
  - Rejection sampling accepts .886 of the slates whose target stands first and .342 of those where it stands sixth; targeted sampling all.
OPD learns in many small steps (1,000 of 8 prompts x 4): in 60 of 64 x 4 with AdamW, as many samples as half of that, the same student ended
where it began. β is chosen on the training reward of seed 0: at the default, .5 to .05, the student of `opd_reward` learns from neither.
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


def get_config(arg=None):
  args = parse_arg(arg, beauty=False, tiny=False, seed=0)
  if args.beauty:
    config = amazon.get_config(f"beauty,small=true,seed={args.seed},tiny={args.tiny}")
    config.name = "prior_beauty"
    return config
  config = small_market.get_config(f"seed={args.seed},tiny={args.tiny}")
  config.name = "prior"
  return config
