"""Every setting of a run with its default; an experiment is this plus a small diff (see quickstart.py, amazon.py).

docs/config.md lists them: what each means, its unit, default and values, and which stages read it. It is made from the records:
`experiments/settings.py` has what all stages share, `experiments/stages/STAGE.py` the section of a stage, and they name the records
inside. The main line stands at GR2's published constants where there are any.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.settings import RunOptions
from experiments.stages import load_stages
from gr2_jax.settings import to_section
from gr2_jax.training import OptimizerConfig


def base() -> ConfigDict:
  """The defaults of all records."""
  sections = {stage.name: to_section(stage.options()) for stage in load_stages() if stage.options is not None}
  return ConfigDict(to_section(RunOptions()) | sections)


def optimizer(learning_rate: float, **changes: Any) -> ConfigDict:
  """A section of an optimizer."""
  return ConfigDict(to_section(OptimizerConfig(learning_rate, **changes)))
