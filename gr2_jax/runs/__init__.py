"""The run directory, written and read: what was run, its stages and policies, and trainings with its files."""

from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, find_policy, read_policies
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.stages import Init, Stage

__all__ = ["Init", "PolicyRecord", "RankerRecord", "Run", "RunError", "Stage", "StageContext", "begin_run", "find_policy", "read_policies"]
