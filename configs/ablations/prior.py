"""What RL should start from: nothing, SFT on targeted or rejection-sampled traces, or on-policy distillation, with and without a reward.

    python -m experiments.sweep --config=configs/ablations/prior.py --workdir=runs/prior
    python -m experiments.sweep --config=configs/ablations/prior.py:beauty --config.data.source=FOLDER --workdir=runs/prior_beauty

Hardware: 2 CPU cores, planned for 2 hours in all on the synthetic market (not run whole yet); with `beauty` about half a day.
`seed=N` is another market with other draws; `tiny` is for tests.

Five priors, two student sizes, each followed by the same RL. The teacher comes first: a larger model after SFT and RL, one for each seed.
GR2 reports that a 1.7B student keeps 82 % of the gain of its 32B teacher by OPD, that SFT on traces falls below the order it is given
(v1 on Beauty: R@1 .289 upstream, .278 after rejection, .201 after targeted sampling), that RL after OPD beats RL alone, and that rejection
sampling loses the hard slates. The page of the sweep answers each with an interval.

Two things differ from the report. Traces come from the scripted teacher, which reads the catalogue's counts, and the teacher of OPD has
itself learnt from such traces. And OPD starts from a short SFT: a small model that has never seen an answer writes reasoning of which the
teacher can make nothing either, and learns nothing from its scores (25 steps from the mid-trained model of the size `test`: reverse KL
0.63 nats per token at both ends, with longer and longer reasoning).

Seen so far, elsewhere: on the market of reward_hacking.py (one seed, 1,000 slates of 6, answers of 16 tokens) the SFT policy, R@1 .131,
learnt from a policy after RL of its own size, .425, without a reward: reverse KL 1.91 to .09 nats per token in 60 steps, R@1 .416, which is
91 % [80, 102] of the teacher's gain over the upstream order's .327.
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
  # At the default weights, .5 to .05, the reward's noise is the louder part from the start, and the student learns from neither.
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
