"""The policies that a config leaves, and how they are asked."""

from collections import Counter

from ml_collections import ConfigDict

from experiments.stages import load_stages
from gr2_jax.runs.stages import needed_stages


def count_policies(config: ConfigDict) -> dict[bool, int]:
  """How many rankers the evaluation asks that answer at once (True), and that reason first (False); kinds without any are left out."""
  declared = [needed.stage.policies(config) for needed in needed_stages(load_stages(), config) if needed.stage.policies is not None]
  return dict(Counter(ranker.mode != "reason" for policies in declared for policy in policies for ranker in policy.rankers))
