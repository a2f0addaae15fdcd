"""The run directory, written and read: what was run, its stages and policies, trainings with its files, and runs as files that travel."""

from gr2_jax.runs.context import StageContext
from gr2_jax.runs.policies import PolicyRecord, RankerRecord, find_policy, read_policies
from gr2_jax.runs.run import Run, RunError, begin_run
from gr2_jax.runs.run_file import RunFile, read_run_file
from gr2_jax.runs.stages import Init, Stage

__all__ = [
  "Init",
  "PolicyRecord",
  "RankerRecord",
  "Run",
  "RunError",
  "RunFile",
  "Stage",
  "StageContext",
  "begin_run",
  "find_policy",
  "read_policies",
  "read_run_file",
]
