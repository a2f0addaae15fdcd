"""Purpose: where RL is worth it, and where supervision does as well: whole slates, biased clicks, few labels, reasonings, copying.
Paper: v1 on Beauty: R@1 .2784 after SFT, .2977 after RL; no control by supervision on the same labels that we know of.
Expected: on clicks weighed by propensity RL over its control, weighed alike, N@3 by the market's truth +.008 [.004, .011]; with all labels
  level, -.001 [-.003, .002] (95 % intervals, seeds 0 to 2).
Hardware: 2 CPU cores, two hours or more (estimated).
Command: python -m experiments.sweep --config=configs/ablations/rl_value.py --workdir=runs/rl_value
Measured: docs/results/rl_value.md

Each variant trains RL and, from the same start and told the same, its control by cross-entropy; what a reward pays besides labels a third
rival gets by re-ranking the control's scores greedily. Three seeds, which share their stages up to RL; the policies of whole slates read
texts, which name brands. `seed=N`: another market with other draws; `tiny`: for tests.
"""

from configs import quickstart
from experiments.flags import parse_arg

_PLACES = 8  # of a slate, all of which earn where labels are few or clicks
# A policy that is to vary brands must tell them apart, and no fact names them.
_READS = {"answer.texts": True, "answer.past": 1, "rl.slate.top": 3}
_CLICKS = {"rl.slate.top": _PLACES, "rl.feedback.source": "clicks"}
_NO_CONTROL = {"rl.control": False}  # it is that of `plain`

VARIED = {f"varied_{round(100 * weight):03d}": _READS | {"rl.slate.diversity": weight} for weight in (0.25, 0.5, 1.0)}
EXPOSED = {f"exposed_{round(100 * weight):03d}": _READS | {"rl.slate.small_brands": weight} for weight in (0.05, 0.1, 0.2)}
CHEAP = {f"cheap_{round(100 * weight):03d}": _READS | {"rl.slate.price": -weight} for weight in (0.1, 0.3)}
CLICKS = {
  "clicks_naive": _CLICKS,
  "clicks_ipw": _CLICKS | {"rl.feedback.weighing": "propensity"},
  "clicks_all_seen": _CLICKS | {"rl.feedback.decay": 0.0},
}
FEW = {f"few_{round(100 * share):02d}": {"rl.slate.top": _PLACES, "rl.feedback.share": share} for share in (0.01, 0.1)}
CONDITIONS = {
  "eq7": {"rl.reward.condition": "eq7"} | _NO_CONTROL,
  "relative": {"rl.reward.condition": "relative"} | _NO_CONTROL,
  "improving": {"rl.reward.condition": "improving"} | _NO_CONTROL,
}
SLATES = VARIED | EXPOSED | CHEAP
VARIANTS = {"plain": {}} | CLICKS | FEW | {"reading": _READS} | SLATES | CONDITIONS | {"reasoned": quickstart.REASONED}
SEEDS = (0, 1, 2)

_WHOLE = ("slate_reward", "true_ndcg@3")
_FOUND = ("true_recall@1", "true_ndcg@3")
COMPARISONS = {
  "RL against its control, told the same labels": [
    (f"{variant}/policy", f"{variant}/rl_control") for variant in ("plain", "reading", *FEW, "reasoned")
  ],
  "Clicks under position bias": [
    *((f"{variant}/policy", f"{variant}/rl_control") for variant in CLICKS),
    *((f"clicks_ipw/{ranker}", f"clicks_naive/{ranker}") for ranker in ("policy", "rl_control")),
    *((f"clicks_all_seen/{ranker}", f"clicks_ipw/{ranker}") for ranker in ("policy", "rl_control")),
  ],
  "Rewards of whole slates": [
    (f"{variant}/policy", f"{variant}/{rival}")
    for variant in SLATES
    for rival in ("rl_control", "rl_control_reranked", "lambdamart_all_reranked")
  ],
  "Conditions against copying": [(f"{variant}/policy", "plain/policy") for variant in CONDITIONS],
  "RL after a reasoning against RL at once": [("reasoned/policy", "plain/policy")],
}
SHOWN = {title: _WHOLE if title == "Rewards of whole slates" else _FOUND for title in COMPARISONS}
FRONTS = {
  f"N@3 against {name}": {
    "axes": ("true_ndcg@3", metric),
    "series": {
      title: [f"{variant}/{ranker}" for variant in of]
      for title, ranker in (("RL", "policy"), ("control, re-ranked", "rl_control_reranked"), ("tree, re-ranked", "lambdamart_all_reranked"))
    }
    | {"control": ["reading/rl_control"]},
  }
  for name, metric, of in (
    ("variety of brands", "brands@3", VARIED),
    ("first places of small brands", "small_brands@1", EXPOSED),
    ("price", "price@3", CHEAP),
  )
}


def get_variants(arg=None):
  """VARIANTS, in `tiny` with its own few steps of RL after reasonings as well, and a share that leaves it labels."""
  if not _read(arg).tiny:
    return VARIANTS
  return VARIANTS | {"reasoned": {"prompt.direct": False}, "few_01": FEW["few_01"] | {"rl.feedback.share": 0.05}}


def _read(arg):
  return parse_arg(arg, tiny=False, seed=0)


def get_config(arg=None):
  args = _read(arg)
  config = quickstart.get_config(f"at_once,seed={args.seed},tiny={args.tiny}")
  config.name = "rl_value"
  config.direct.enabled = False  # it learns without RL, and the page of the main line has it
  return config
